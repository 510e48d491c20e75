"""The pretraining recipe."""

from ...recipe import OWN_DATA, Engine, Optim
from ..classification.config import ClassificationInput
from .config import PretrainingRecipe

RECIPES: tuple[PretrainingRecipe, ...] = (
    PretrainingRecipe(
        name="pretrain",
        about="initial weights from your own images without labels (SimCLR)",
        model="smt_tiny",
        data=OWN_DATA,
        epochs=100,
        batch_size=128,
        input=ClassificationInput(val_fraction=0.05),
        optim=Optim(lr=1e-3, min_lr=1e-6, warmup_lr=1e-6, lr_batch=256, warmup_epochs=5.0, clip_grad=1.0),
        engine=Engine(log_every=10),
        expected_source="depends on your data",
        hardware="one GPU of 16 GB; with images of 32 to 64 pixels, a CPU",
        citation="Chen et al., SimCLR, ICML 2020, arXiv 2002.05709",
    ),
)
