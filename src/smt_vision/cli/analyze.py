"""``smt analyze``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import Count, Fraction, OutputFolder
from .common import Output, Parser, new_parser
from .console import styled
from .overrides import add_overrides, overrides_of
from .progress import status_callback

if TYPE_CHECKING:
    from ..analysis.kinds import Options, Outcome
    from ..analysis.subject import Sample, Subject

HELP = "visualize a model: modulation, attention, receptive fields, spectra, CAMs, neighbors"
KINDS = {
    "modulation": "outputs of the convolution heads and of their aggregation in every modulation block",
    "attention": "attention maps by head, and mean attention distance",
    "erf": "effective receptive field by stage, with the radii of 50 and 95 %",
    "spectrum": "Fourier spectrum of feature maps by depth",
    "cam": "class activation map (Grad-CAM) of the predicted class or of --target",
    "neighbors": "nearest neighbors of the images in --folder by pooled features",
}
EXAMPLES = """\
smt analyze smt_femto.cifar10 PHOTO.jpg                        all kinds that apply; works offline
smt analyze runs/finetune PHOTOS/ --kinds erf spectrum --compare runs/swin runs/all_attention
smt analyze runs/nuclei PHOTO.jpg --kinds attention --query 0.3 0.7
smt analyze runs/finetune --kinds neighbors --folder MY_IMAGES PHOTO.jpg
smt analyze swin_tiny_patch4_window7_224 --kinds erf --untrained PHOTO.jpg
"""


def build_parser(words: list[str]) -> Parser:
    about = f"{HELP}.\nPictures and raw arrays (npz) are written to OUT/MODEL. Kinds:\n" + "\n".join(
        f"  {name:<12}{meaning}" for name, meaning in KINDS.items()
    )
    parser = new_parser("analyze", about, EXAMPLES, "smt analyze MODEL IMAGE ... [--OPTION VALUE ...]")
    parser.add_argument("model", help="a run folder, a checkpoint, or a timm model name (its pretrained weights)")
    parser.add_argument("images", nargs="+", help="images, or folders, which are searched recursively")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), help="default: all that apply to the model")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="MODEL", help="further models, drawn in one picture with the first"
    )
    parser.add_argument("--untrained", action="store_true", help="random weights for the models, which are timm names")
    parser.add_argument("--folder", type=Path, help="images to search for nearest neighbors")
    parser.add_argument("--top_k", type=Count | None, help="number of nearest neighbors; default: 8")
    parser.add_argument(
        "--query", type=Fraction, nargs=2, metavar=("Y", "X"),
        help="query of attention maps: position from the top and from the left, 0 to 1; default: the center",
    )  # fmt: skip
    parser.add_argument("--target", type=str | None, help="class of class activation maps: a name or an index")
    parser.add_argument("--out", type=OutputFolder, default=Path("analysis"), help="output folder")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png", help="format of pictures")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    add_overrides(parser)
    return parser


def run(args: Any) -> Output:
    options, images = _options(args)
    from ..analysis.kinds import KINDS as ALL
    from ..analysis.subject import image_names, load_subject, model_names

    kinds = args.kinds or [kind for kind in ALL if kind != "neighbors" or args.folder]
    sources = [args.model, *args.compare]
    names = model_names(sources)
    data: list[dict[str, Any]] = []
    show: list[Any] = []
    written: list[Path] = []
    comparable: dict[str, list[tuple[str, Any]]] = {}
    with status_callback() as on_status:
        analyses = []
        for source, name in zip(sources, names, strict=True):
            on_status(f"loading {source}")
            subject = load_subject(source, name, args.device, overrides_of(args), args.untrained)
            analyses.append(_Analysis(subject, images, options, args.out / name, all_or_error=bool(args.kinds)))
            analyses[-1].check(kinds)
        for source, analysis in zip(sources, analyses, strict=True):
            subject = analysis.subject
            outcomes, notes = analysis.run(kinds, on_status)
            undefined, failed = analysis.undefined, analysis.failed
            show.append(styled((subject.name, "bold")))
            show += [f"  {kind:<12}{outcome.summary}" for kind, outcome in outcomes.items()]
            show += [styled(f"  {kind:<12}", ("not defined:", "yellow"), f" {why}") for kind, why in undefined.items()]
            show += [styled(f"  {kind:<12}", ("failed:", "red"), f" {why}") for kind, why in failed.items()]
            show += [f"  {note}" for note in notes]
            files = [path for outcome in outcomes.values() for path in outcome.written]
            written += files
            for kind, outcome in outcomes.items():
                if outcome.comparable is not None:
                    comparable.setdefault(kind, []).append((subject.name, outcome.comparable))
            results = {kind: outcome.data for kind, outcome in outcomes.items()}
            entry = {"model": subject.name, "source": source, "results": results, "undefined": undefined}
            data.append({**entry, "failed": failed, "notes": notes})
        for kind, models in comparable.items():
            if len(models) > 1 and (comparison := ALL[kind].comparison):
                path = args.out / f"{comparison.stem}.{args.format}"
                comparison.draw(models, comparison.title(image_names(images)), path)
                written.append(path)
    show.append("written:")
    show += [f"  {path}" for path in written]
    code = int(any(analysis.failed for analysis in analyses))
    return Output({"models": data, "written": [str(path) for path in written]}, show, code)


def _options(args: Any) -> tuple["Options", list[Path]]:
    """The options and images, checked before a model is loaded."""
    kinds = args.kinds or []
    if args.folder is None and "neighbors" in kinds:
        raise ValueError("--kinds neighbors needs --folder FOLDER: images to search")
    given = {
        "folder": ("neighbors", args.folder),
        "top_k": ("neighbors", args.top_k),
        "query": ("attention", args.query),
        "target": ("cam", args.target),
    }
    for option, (kind, value) in given.items():
        if value is not None and kinds and kind not in kinds:
            raise ValueError(f"--{option} is used by --kinds {kind}, not by {', '.join(kinds)}; omit it")
    from ..data.files import find_images

    images = find_images(args.images)
    gallery = find_images([args.folder]) if args.folder else []
    from ..analysis.kinds import Options

    given_options = {
        **({} if args.query is None else {"query": (args.query[0], args.query[1])}),
        **({} if args.top_k is None else {"top_k": args.top_k}),
    }
    return Options(target=args.target, gallery=gallery, format=args.format, **given_options), images


class _Analysis:
    """The analysis of one model.

    Attributes:
        undefined: The kinds that are not defined for the model, with the reason.
        failed: The kinds that ended with an error of PyTorch, e.g. for lack of memory, with its message.
    """

    def __init__(
        self, subject: "Subject", images: list[Path], options: "Options", folder: Path, all_or_error: bool
    ) -> None:
        self.subject = subject
        self.images = images
        self.options = options
        self.folder = folder
        self.all_or_error = all_or_error
        self.undefined: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def check(self, kinds: list[str]) -> None:
        """Raise what can be known before anything is computed, e.g. that an image is unreadable."""
        from ..analysis.kinds import KINDS as ALL
        from ..analysis.kinds import class_index

        first, *others = self.images
        sample = self.subject.sample(first, first.stem)
        self.subject.check(sample)
        for path in others:
            self.subject.sample(path, path.stem)
        if self.options.target is not None and self.subject.is_classifier:
            class_index(self.options.target, self.subject.predictor.classes)
        for kind in kinds:
            with self._errors_of(kind):
                ALL[kind].check(self.subject, sample)

    def run(self, kinds: list[str], on_status: Any) -> tuple[dict[str, "Outcome"], list[str]]:
        """Results by kind, and notes."""
        from ..analysis.kinds import KINDS as ALL
        from ..analysis.subject import image_names

        reduced: dict[str, str] = {}

        def samples() -> Iterator["Sample"]:
            for path, name in zip(self.images, image_names(self.images), strict=True):
                sample = self.subject.sample(path, name)
                if sample.reduced:
                    reduced[sample.name] = f"{path}: {sample.reduced}"
                yield sample

        outcomes: dict[str, Outcome] = {}
        for kind in kinds:
            if kind in self.undefined or kind in self.failed:
                continue
            on_status(f"{self.subject.name}: {kind}")
            with self._errors_of(kind):
                outcomes[kind] = ALL[kind].run(self.subject, samples, self.options, self.folder)
        notes = [note for outcome in outcomes.values() for note in outcome.notes]
        return outcomes, [*reduced.values(), *notes]

    @contextmanager
    def _errors_of(self, kind: str) -> Iterator[None]:
        """Keep the errors that concern one kind only."""
        from ..analysis.blocks import NotDefined

        try:
            yield
        except (NotDefined, ImportError) as error:  # the package that a kind needs may not be installed
            self._leave_out(kind, error)
        except RuntimeError as error:
            self.failed[kind] = (str(error).strip() or type(error).__name__).splitlines()[0]

    def _leave_out(self, kind: str, error: Exception) -> None:
        """Keep the reason; for kinds that were asked for by name it is an error."""
        if self.all_or_error:
            if isinstance(error, ImportError):
                raise error
            raise ValueError(
                f"{kind} is not defined for {self.subject.name}: {error}; without --kinds, what applies is computed"
            ) from error
        self.undefined[kind] = str(error)
