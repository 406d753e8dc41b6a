"""Lets torchvision's CUDA build be imported beside a torch without CUDA.

Copied into the site-packages of such an environment and imported at start-up from a .pth file. torchvision registers
shapes for operators of its compiled part, which cannot load there: they are declared just before its import. Nothing
is computed with them here, so they have no implementation.
"""

import sys
from importlib.abc import MetaPathFinder


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_finder = _BeforeTorchvision()  # keeps the library, and with it the declarations, alive
sys.meta_path.insert(0, _finder)
