"""The page that shows a trained run: ``report.html`` and its figures."""

from patchdrop.report.gallery import GalleryItem, overlay
from patchdrop.report.page import write_report

__all__ = ["GalleryItem", "overlay", "write_report"]
