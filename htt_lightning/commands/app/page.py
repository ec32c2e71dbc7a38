"""Layout of the page, in Gradio, and its server."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from htt_lightning.commands.app.photograph import OPACITY, STYLE, draw_maps, maps_html, reduce_photograph
from htt_lightning.commands.app.review import Review, describe
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.io.image_files import has_heif
from htt_lightning.io.run_directory import CHECKPOINTS
from htt_lightning.predictor import HTTPredictor

Load = Callable[[str], HTTPredictor]
"""Function from the path of a checkpoint to its network."""
HOST = "127.0.0.1"
"""Address of the page: this machine alone."""
ALL_TASKS = "all tasks"
NOTHING = "nothing"
"""Choice of no second checkpoint."""
SET_OPACITY = "(value) => { document.documentElement.style.setProperty('--map-opacity', value); return []; }"
"""Function of the browser: the slider changes the style sheet, and nothing is sent."""


def build_page(
    predictors: Mapping[str, HTTPredictor], others: Sequence[str], load: Load, review: Review | None
) -> gr.Blocks:
    """Build the page: a tab for photographs, if there is a network, and one for discovered labels, if there are any.

    Args:
        predictors: One or two networks that are loaded, by their checkpoints.
        others: Checkpoints that the first network can be compared with.
        load: Function that loads one of them.
        review: Discovered labels; None for no tab.
    """
    has_heif()  # Gradio opens uploaded files by Pillow
    page = gr.Blocks(title="htt app", analytics_enabled=False, fill_width=True)
    with page:
        if predictors:
            with gr.Tab("Photograph"):
                _add_photograph(predictors, others, load)
        if review:
            with gr.Tab("Discovered labels"):
                _add_review(page, review)
    return page


def launch(page: gr.Blocks, port: int | None, browser: bool) -> str:
    """Serve the page to this machine and return its address."""
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=browser,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=gr.themes.Default(),  # its fonts are files of the package
            css=STYLE,
            # Another site that resolves to this machine must not reach the page.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        )
    except OSError as error:
        raise ConfigError(f"--port must be free, got {port or 'none from 7860 on'} ({error}).") from error
    return address


def short_name(path: str) -> str:
    """Return the run and the name of a checkpoint.

    >>> short_name("runs/version_0/checkpoints/stage_1.ckpt")
    'version_0/stage_1'
    """
    parts = [part for part in Path(path).with_suffix("").parts if part != CHECKPOINTS]
    return "/".join(parts[-2:])


def _add_photograph(predictors: Mapping[str, HTTPredictor], others: Sequence[str], load: Load) -> None:
    first, *second = predictors
    choices = list(dict.fromkeys([NOTHING, *second, *others]))
    load_other = lru_cache(maxsize=1)(lambda path: predictors.get(path) or load(path))
    with gr.Row():
        with gr.Column(scale=1, elem_classes="controls"):
            photograph = gr.Image(
                label="Photograph", type="pil", image_mode=None, sources=["upload", "webcam"], buttons=[]
            )
            opacity = gr.Slider(0, 1, OPACITY, step=0.01, label="Opacity of the maps", elem_id="opacity")
            compare = gr.Dropdown(
                [(short_name(path), path) for path in choices],
                value=choices[bool(second)],
                label="Compare with",
                visible=len(choices) > 1,
                elem_id="compare",
            )
        with gr.Column(scale=3):
            maps = gr.HTML("Drop a photograph, or use the camera.", elem_id="maps")

    def show(image: Image.Image | None, other: str) -> str:
        if image is None:
            return "Drop a photograph, or use the camera."
        try:
            small = reduce_photograph(image)
            shown = {first: predictors[first]} | ({} if other == NOTHING else {other: load_other(other)})
            return maps_html(small, {name: draw_maps(predictor, small) for name, predictor in shown.items()})
        except HTTError as error:
            raise gr.Error(str(error), print_exception=False) from error

    for control in (photograph, compare):
        control.change(show, [photograph, compare], maps, api_visibility="private")
    opacity.input(None, opacity, None, js=SET_OPACITY, api_visibility="private")


def _add_review(page: gr.Blocks, review: Review) -> None:
    tasks = [task.name for task in review.tasks]
    if not review.confidences:
        gr.Markdown("No image has a discovered label.")
        return
    with gr.Row():
        sort_by = gr.Dropdown([ALL_TASKS, *tasks], value=ALL_TASKS, label="Lowest mean confidence first, of")
        place = gr.Number(1, label="Image", precision=0, minimum=1, elem_id="place")
        back, forward = gr.Button("Previous"), gr.Button("Next")
    text = gr.Markdown(elem_id="description")
    with gr.Row():
        buttons = [gr.Button(visible=False, elem_id=f"reject-{task}") for task in tasks]
    # Gradio's button "share" would send the picture to a public site.
    panel = gr.Image(
        show_label=False, interactive=False, format="png", buttons=["fullscreen", "download"], elem_id="panel"
    )
    outputs = [place, text, panel, *buttons]

    def show(task: str, number: float, step: int = 0) -> list[Any]:
        order = review.order(None if task == ALL_TASKS else task)
        if not order:
            return [1, f"No image has a discovered label of {task}.", None, *[gr.update(visible=False)] * len(tasks)]
        index = min(max(int(number or 1) - 1 + step, 0), len(order) - 1)
        name = order[index]
        try:
            picture = review.draw(name)
        except HTTError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [index + 1, describe(review, name, index, len(order)), picture, *_button_updates(review, name, tasks)]

    def reject(task: str, sort: str, number: float, label: str) -> list[Any]:
        order = review.order(None if sort == ALL_TASKS else sort)
        try:
            review.set_rejected(order[int(number) - 1], task, label.startswith("Reject"))
        except HTTError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return show(sort, number)

    inputs: Any = [sort_by, place]
    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    page.load(show, inputs, outputs, **hidden)
    place.submit(show, inputs, outputs, **hidden)
    sort_by.change(lambda task: show(task, 1), sort_by, outputs, **hidden)
    back.click(partial(show, step=-1), inputs, outputs, **hidden)
    forward.click(partial(show, step=1), inputs, outputs, **hidden)
    for task, button in zip(tasks, buttons, strict=True):
        button.click(partial(reject, task), [*inputs, button], outputs, **hidden)


def _button_updates(review: Review, name: str, tasks: list[str]) -> list[Any]:
    """Update the buttons of an image: one for each discovered label, with the action that it offers."""
    updates = []
    for task in tasks:
        rejected = review.is_rejected(name, task)
        label = f"{'Keep' if rejected else 'Reject'} {task}"
        variant = "primary" if rejected else "secondary"
        updates.append(gr.update(value=label, variant=variant, visible=task in review.confidences[name]))
    return updates
