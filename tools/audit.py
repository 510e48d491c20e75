"""Look the installed packages up in PyPI's database of vulnerabilities.

    python tools/audit.py

Ends with 1 if a package has a known vulnerability. Where the database cannot be reached nothing is looked up, which is
said, and is not an error: a machine may have a mirror of the packages only.
"""

import json
import subprocess
import sys
from typing import Any

SECONDS = 10  # for an answer of the database
ALL_SECONDS = 300
OPTIONS = ("--format", "json", "--skip-editable", "--progress-spinner", "off", "--timeout", str(SECONDS))


def main() -> int:
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments
            [sys.executable, "-m", "pip_audit", *OPTIONS],
            capture_output=True,
            text=True,
            timeout=ALL_SECONDS,
            check=False,
        )
        answer, reason = done.stdout, (done.stderr.strip().splitlines() or ["no answer"])[-1]
    except subprocess.TimeoutExpired:
        answer, reason = "", f"no answer in {ALL_SECONDS} seconds"
    if "No module named pip_audit" in reason:
        print("audit: pip-audit is not installed; it comes with the extra dev")
        return 1
    lines, code = report(answer, reason)
    print("\n".join(f"audit: {line}" for line in lines))
    return code


def report(answer: str, reason: str) -> tuple[list[str], int]:
    """Lines to print, and the exit code.

    Args:
        answer: What pip-audit printed, in JSON; anything else if it could not ask.
        reason: The last line of its messages.
    """
    try:
        packages: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        packages = []
    asked = [package for package in packages if "vulns" in package]
    if not asked:
        why = f"; it has none of {len(packages)} packages" if packages else f" ({reason[:100]})"
        return [f"NOT DONE: the database of vulnerabilities cannot be reached{why}"], 0
    lines = []
    for package in asked:
        for found in package["vulns"]:
            fixed = f"fixed in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "without a fix"
            lines.append(f"{package['name']} {package['version']}: {found['id']}, {fixed}")
    unknown = len(packages) - len(asked)
    not_there = f"; {unknown} others are not in the database" if unknown else ""
    return [*lines, f"{len(lines)} known vulnerabilities in {len(asked)} packages{not_there}"], int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
