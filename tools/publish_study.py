"""Copy the results of studies into docs/results/study/, write their report there, and the verdicts into the README.

    python tools/publish_study.py runs/study

Results and failures are merged with those that are there already, and the throughputs replaced. The README has, between
two comments, the table of verdicts with one line per claim.
"""

import sys
from pathlib import Path

from smt_vision.study.report import training_commands, verdict_table, write_report
from smt_vision.study.results import FAILURES, RESULTS, add_failure, add_result, read_failures, read_results
from smt_vision.study.statistics import summarize
from smt_vision.study.studies import STUDIES
from smt_vision.study.throughput import THROUGHPUT, read_throughput

REPO = Path(__file__).resolve().parents[1]
FIRST, LAST = "<!-- verdicts: written by tools/publish_study.py -->", "<!-- end of verdicts -->"
DATA = {"torch/cifar10": "cifar10.tar.gz", "camvid": "camvid"}


def main(run: Path, results: Path = REPO / "docs" / "results" / "study", readme: Path = REPO / "README.md") -> None:
    known, known_failures = read_results([results / RESULTS]), read_failures([results / FAILURES])
    # An error, if a cell has another result here and there, leaves everything as it is.
    found = read_results([results / RESULTS, run / RESULTS])
    failed = read_failures([results / FAILURES, run / FAILURES])
    for key, result in found.items():
        if key not in known:
            add_result(results / RESULTS, result)
    for key, failure in failed.items():
        if known_failures.get(key) != failure:
            add_failure(results / FAILURES, **failure)
    if (run / THROUGHPUT).is_file():  # of one measurement, since only models that were timed in turn compare
        (results / THROUGHPUT).write_bytes((run / THROUGHPUT).read_bytes())
    summaries = {name: summarize(study, found, failed=failed) for name, study in STUDIES.items()}
    studies = [study for name, study in STUDIES.items() if any(summary.comparisons for summary in summaries[name])]
    names = {study.name: study.name for study in studies}
    trained = [f"{line} --jobs 2" for line in training_commands(studies, summaries, names, data=DATA)]
    measured = [line.replace("--jobs 2", "--throughput") for line in trained]
    command = "\n".join([*trained, *measured, "python tools/publish_study.py runs/study"])
    write_report(studies, summaries, results, throughput=read_throughput(results), command=command)
    text = readme.read_text(encoding="utf-8")
    before, after = text.split(FIRST)[0], text.split(LAST)[1]
    table = verdict_table(studies, summaries, decisive=True)
    readme.write_text("\n".join([f"{before}{FIRST}", *table, f"{LAST}{after}"]), encoding="utf-8")
    print(f"{results}: {len(found)} cells of {len(studies)} studies")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
