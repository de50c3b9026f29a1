"""Score a trained model of images: the command `sdegen evaluate`, to copy and change.

python examples/evaluate_images.py --help
"""

import sys

from sdegen.app.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
