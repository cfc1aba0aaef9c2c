"""Reports as pages: one self-contained HTML file for people, with the report's JSON in it for programs."""

from ckpt_tools.pages.layout_figures import layout_figure
from ckpt_tools.pages.spectra import Spectrum, spectra_blocks
from ckpt_tools.pages.writing import check_page, write_page

__all__ = ["Spectrum", "check_page", "layout_figure", "spectra_blocks", "write_page"]
