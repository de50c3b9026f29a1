"""What a draw is for: the first word of its address, so that no two draws of one seed share their numbers."""

from __future__ import annotations

from enum import Enum


class Purpose(int, Enum):
    """Every purpose in the package: its number, and how many words (times, counters) follow it in an address.

    Addresses of different lengths never meet, so a number may serve twice where the lengths differ. The numbers are
    part of what a seed means: a change would draw other samples.
    """

    length: int

    def __new__(cls, number: int, length: int) -> Purpose:
        purpose = int.__new__(cls, number)
        purpose._value_ = (number, length)
        purpose.length = length
        return purpose

    def __repr__(self) -> str:  # a number among numbers: seeds are derived from how addresses are written
        return int.__repr__(self)

    PRIOR = 1, 0  # where a sample starts
    STEP = 2, 2  # the noise of a step: from t to t_next
    CORRECTOR = 3, 2  # Langevin steps at one time: t, which of them
    PROBE = 4, 1  # random directions of a divergence: which of them
    LOSS_PROBE = 4, 0
    DEQUANTISE = 5, 1  # noise on whole numbers: which draw
    ORDER = 7, 0  # which samples of a demonstration are held out
    COMPONENT = 11, 0  # of a mixture
    COMPONENT_NOISE = 12, 0
    LOSS_TIME = 21, 0
    LOSS_NOISE = 22, 0
    TREE_ENDS = 21, 1  # a Brownian path over its whole span: the key
    TREE_HALVES = 22, 1  # and over the halves of an interval: the interval's key
    AREA = 23, 2  # the integral of a path over a step: from t to t_next
    PATH_AHEAD = 24, 1  # a path drawn as it is asked for, beyond what is known: which draw
    PATH_PIECE = 25, 1  # and inside of it
    NODE = 31, 0  # the node of a table that a loss is taken at
    CHAIN = 32, 1  # noise of the variational bound: which node
    CHAIN_LOSS = 32, 0
    SOLVER_FIT = 41, 0  # where flows start that a solver is fitted to, or smoothness is measured by
    MEASURED_NOISE = 51, 1  # on data, for what a model leaves of it: which noise level
    PARTICLE_START = 61, 0  # where a group of particles starts
    PARTICLE = 62, 2  # their noise in a step: from t to t_next
    RESAMPLE = 63, 1  # which of them are drawn anew: t
    CHOICE = 63, 0  # which of them is the sample
    SEEN = 64, 1  # on what was seen of a sample: t
    LATENT = 71, 0  # an encoder's draw of a latent
    TEST_STATES = 101, 0
    TEST_NOISE = 102, 0
