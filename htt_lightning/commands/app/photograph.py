"""Maps of a photograph, blended over it: predictions of one or two networks as HTML with legends."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from htt_lightning.callbacks.panel import Item, PanelEntry, draw_map, task_legend
from htt_lightning.io.images import to_rgb
from htt_lightning.predictor import HTTPredictor

MAX_SIDE = 1280
"""Longer side in pixels to which a photograph is reduced, so that the page stays quick."""
OPACITY = 0.7
"""Opacity of the maps at first."""

STYLE = f"""
:root {{ --map-opacity: {OPACITY}; }}
.maps {{ display: grid; gap: 1rem; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }}
.maps h3, .maps p {{ margin: 0; overflow-wrap: anywhere; }}
.maps figure {{ margin: 0; }}
.maps .stack {{ position: relative; }}
.maps .stack img {{ display: block; width: 100%; }}
.maps .stack img + img {{ position: absolute; inset: 0; height: 100%; opacity: var(--map-opacity); }}
.maps figcaption {{ display: flex; flex-wrap: wrap; gap: 0.2rem 0.4rem; align-items: center; font-size: 0.9rem; }}
.maps figcaption span {{ white-space: nowrap; }}
.maps figcaption img {{ display: inline; height: 1em; margin-right: 0.3em; vertical-align: middle; }}
.controls {{ position: sticky; top: 1rem; align-self: flex-start; }}
@media (max-width: 40rem) {{ .maps {{ grid-template-columns: minmax(0, 1fr); }} }}
"""
"""Style sheet: a grid of figures, each a photograph below a map."""


@dataclass(frozen=True)
class DrawnMaps:
    """Maps that a network predicts for a photograph.

    Attributes:
        maps: Colored maps by task, uint8 ``h w 3``.
        legends: Texts and colors that explain each map.
    """

    maps: Mapping[str, np.ndarray]
    legends: Mapping[str, Sequence[Item]]


def reduce_photograph(image: Image.Image, max_side: int = MAX_SIDE) -> Image.Image:
    """Reduce a photograph to RGB, transparent pixels on white, with a longer side of at most ``max_side`` pixels.

    >>> reduce_photograph(Image.new("RGB", (4000, 3000))).size
    (1280, 960)
    """
    small = Image.fromarray(to_rgb(image, "The photograph"))
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return small


def draw_maps(predictor: HTTPredictor, image: Image.Image) -> DrawnMaps:
    """Predict the maps of a photograph and draw them with their legends."""
    tasks = predictor.tasks
    maps = {name: draw_map(tasks[name], values) for name, values in predictor(image).items()}
    entry = PanelEntry("", np.asarray(image), [("prediction", maps)])
    legends = task_legend([tasks[name] for name in maps], [entry])
    return DrawnMaps(maps, {name: items[1:] for name, items in zip(maps, legends, strict=True)})


def maps_html(image: Image.Image, drawn: Mapping[str, DrawnMaps]) -> str:
    """Lay the maps of a photograph, by the name of their network, out as HTML.

    Maps of one network fill a grid; those of several are side by side.
    """
    photograph = data_uri(image, "JPEG")
    tasks = list(dict.fromkeys(task for one in drawn.values() for task in one.maps))
    cells = [f"<h3>{escape(name)}</h3>" for name in drawn] if len(drawn) > 1 else []
    for task in tasks:
        for one in drawn.values():
            known = task in one.maps
            cells.append(_figure(photograph, task, one) if known else f"<p>{escape(task)}: not predicted</p>")
    columns = len(drawn) if len(drawn) > 1 else min(3, max(len(tasks), 1))
    return f'<div class="maps" style="--columns: {columns}">{"".join(cells)}</div>'


def data_uri(image: Image.Image, form: str) -> str:
    """Encode a picture as a ``data:`` address, so that a page needs no file."""
    buffer = BytesIO()
    image.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def legend_html(items: Iterable[Item]) -> str:
    """Lay a legend out as HTML; a color stays with the text behind it."""
    html, colors = "", ""
    for item in items:
        if isinstance(item, str):
            html += f"<span>{colors}{escape(item)}</span>"
            colors = ""
        else:
            width = 1 if item.width == item.height else 6
            colors += f'<img alt="" src="{data_uri(item, "PNG")}" style="width: {width}em">'
    return html + colors


def _figure(photograph: str, task: str, drawn: DrawnMaps) -> str:
    picture = data_uri(Image.fromarray(drawn.maps[task]), "PNG")
    name = escape(task)
    return (
        f'<figure><div class="stack"><img alt="photograph" src="{photograph}"><img alt="{name}" src="{picture}"></div>'
        f"<figcaption><b>{name}</b>{legend_html(drawn.legends[task])}</figcaption></figure>"
    )
