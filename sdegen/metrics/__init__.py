"""How good samples are: distances between sets, of points or of features, and of pictures to what they should be.

A distance between sets of features says what the features see: name them with the number. Inception-v3's give FID and
KID (`fid`); elsewhere `train_classifier` gives features that were trained on the data at hand.
"""

from ..distributions.distances import energy_distance, median_distance, mmd, sliced_wasserstein
from .classifier import Classifier, train_classifier
from .frechet import frechet_bias, frechet_distance, frechet_distance_of_moments
from .inception import fid
from .kernel import KernelDistance, kernel_distance
from .manifold import PrecisionRecall, precision_recall
from .moments import Moments, moments_of
from .pairs import psnr, ssim

__all__ = [
    "Classifier",
    "KernelDistance",
    "Moments",
    "PrecisionRecall",
    "energy_distance",
    "fid",
    "frechet_bias",
    "frechet_distance",
    "frechet_distance_of_moments",
    "kernel_distance",
    "median_distance",
    "mmd",
    "moments_of",
    "precision_recall",
    "psnr",
    "sliced_wasserstein",
    "ssim",
    "train_classifier",
]
