"""Train a diffusion model on images: the command `sdegen train`, to copy and change.

python examples/train_images.py --help
"""

import sys

from sdegen.app.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
