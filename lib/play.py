"""Figures to play with: a pad to draw on, and sliders. Where nobody can move them they stand still.

Each `draw_...` makes one figure and says what it shows; each function with the rest of such a name
offers what can be chosen. `Run.attended` says whether somebody can choose: headless, the notebook
shows and saves the figure as it begins, and no widget is made.
"""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import anywidget
import ipywidgets
import numpy as np
import pandas as pd
import torch
import traitlets
from IPython.core.formatters import DisplayFormatter
from IPython.display import display
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from lib import explain, figures
from lib.data import phantom, retina
from lib.evaluation import faithfulness, localisation
from lib.methods import clear
from lib.notebook import Run

Drawn = tuple[Figure, str]  # a figure, and in words what it shows


class Slider(NamedTuple):
    """What a slider offers.

    Attributes:
        label: above all in words.
        places: what each place says, and what it stands for.
        start: what it says at first.
    """

    label: str
    places: dict[str, Any]
    start: str


def as_html(figure: Figure, alt: str) -> str:
    """A figure as HTML, with what it shows as its text and its caption."""
    alt = html.escape(" ".join(alt.split()))
    picture = base64.b64encode(_png(figure)).decode()
    return (
        f'<figure style="margin: 0"><img alt="{alt}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{alt}</figcaption></figure>"
    )


def _png(figure: Figure) -> bytes:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def _display(widget: ipywidgets.DOMWidget, figure: Figure, alt: str) -> None:
    """Show a widget, and the figure in its place to whatever shows none, as a saved notebook."""
    data, metadata = DisplayFormatter().format(widget)
    data = data | {"image/png": _png(figure)}
    display(data, metadata=metadata | {"image/png": {"alt": " ".join(alt.split())}}, raw=True)


def with_sliders(run: Run, name: str, draw: Callable[..., Drawn], *sliders: Slider) -> None:
    """A figure that is drawn anew whenever one of its sliders is moved.

    Args:
        run: of the notebook; the data set `prepared` among its parameters heads the figure.
        name: of the figure's files, as `Run.figure` takes it.
        draw: a value of each slider -> the figure and what it shows.
        sliders: one for each argument of `draw`.
    """

    def drawn(*values: Any) -> Drawn:
        figure, alt = draw(*values)
        if "prepared" in run.parameters:
            figure.suptitle(run.parameters["prepared"])
        return figure, alt

    figure, alt = drawn(*[slider.places[slider.start] for slider in sliders])
    if not run.attended:
        run.figure(figure, name, alt)
        return
    picture = ipywidgets.HTML(as_html(figure, alt))
    look = {"style": {"description_width": "10em"}, "layout": {"width": "34em"}}
    moved = []
    for label, places, start in sliders:
        options = {"description": label, "options": list(places), "value": start}
        moved.append(ipywidgets.SelectionSlider(**options, **look))

    def redraw(_: object) -> None:
        chosen = zip(sliders, moved, strict=True)
        picture.value = as_html(*drawn(*[slider.places[each.value] for slider, each in chosen]))

    for each in moved:
        each.observe(redraw, "value")
    _display(ipywidgets.VBox([*moved, picture]), figure, alt)


def _panels(count: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of 7 inches with `count` panels in a row; unknown to pyplot, so shown once."""
    figure = Figure(figsize=(7, height), dpi=75, layout="constrained")
    return figure, figure.subplots(1, count, **options)


# A digit of one's own


class Pad(anywidget.AnyWidget):
    """A pad to draw on, and beside it the picture that answers.

    Attributes:
        ink: what is drawn, white on black, as the data URL of a PNG.
        picture: HTML.
    """

    _esm = Path(__file__).with_name("play.js")
    ink = traitlets.Unicode().tag(sync=True, echo_update=False)
    picture = traitlets.Unicode().tag(sync=True)


def drawn_on(ink: str) -> np.ndarray:
    """What is drawn on a `Pad`, uint8 (H, W)."""
    data = base64.b64decode(ink.partition(",")[2])
    return np.asarray(Image.open(BytesIO(data)).convert("L"))


def as_digit(ink: np.ndarray, dataset: str) -> Tensor | None:
    """A drawing in the form that the digits of a data set have.

    MNIST's are reduced to 20 pixels and have their centre of mass in the middle of 28 (LeCun et al.
    1998). The bundled ones fill a grid of 8 x 8, which is enlarged as `lib.data.digits` does.

    Args:
        ink: uint8 (H, W), white on black.
        dataset: of `lib.data.digits.DATASETS`; SVHN's have no common form, and MNIST's is taken.

    Returns:
        (1, 1, 28, 28) float32 in [0, 1]; None where nothing is drawn.
    """
    rows, columns = np.nonzero(ink > 25)
    if not len(rows):
        return None
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    drawn = Image.fromarray(ink).crop(box)
    frame, side = (8, 8) if dataset == "digits" else (28, 20)
    scale = side / max(drawn.size)
    width, height = (max(1, round(length * scale)) for length in drawn.size)
    left, top = (frame - width) // 2, (frame - height) // 2
    digit = np.zeros((frame, frame), np.float32)
    small = drawn.resize((width, height), Image.Resampling.BOX)
    digit[top : top + height, left : left + width] = np.asarray(small, np.float32) / 255
    if dataset == "digits":
        grid = torch.from_numpy(digit)[None, None]
        large = functional.interpolate(grid, size=24, mode="bilinear", align_corners=False)
        return functional.pad(large, (2, 2, 2, 2))
    y, x = ndimage.center_of_mass(digit)
    move = round(13.5 - y), round(13.5 - x)
    return torch.from_numpy(ndimage.shift(digit, move, order=0))[None, None]


def draw_answer(network: nn.Module, x: Tensor, relu: str, what: str) -> Drawn:
    """One digit, its CLEAR map, and the ten responses R(x|c) with the classes' probabilities.

    Args:
        network: answers with the scores of ten digits.
        x: (1, C, H, W), the digit.
        relu: the reading of Eq. 3.
        what: the digit in words, for what the figure shows.
    """
    scores, R = clear.attentive_responses(network, x, relu)
    probability = scores.softmax(1)[0]
    answer = int(probability.argmax())
    level = R.clamp(min=0).sqrt()
    height, width = R.shape[2:]
    tiles = level[0].view(2, 5, height, width).transpose(1, 2).reshape(2 * height, 5 * width)
    figure = Figure(figsize=(7, 2.1), dpi=75, layout="none")
    places = {"image": 0.01, "CLEAR map": 0.245, "ten responses (digit: its probability)": 0.48}
    axes = [figure.add_axes((x0, 0.02, 0.23, 0.84)) for x0 in places.values()]
    axes[2].set_position((0.48, 0.02, 0.51, 0.84))
    pictures = x[0], clear.render(level, clear.DIGIT_HUES)[0], tiles
    for ax, picture, title in zip(axes, pictures, places, strict=True):
        figures.show(ax, picture, title, **({} if ax is not axes[2] else {"cmap": "inferno"}))
    axes[1].set_title(f"CLEAR map, answer {answer}")
    for c in range(10):
        at = {"x": c % 5 * width + 1, "y": c // 5 * height + 1, "va": "top"}
        text = axes[2].text(s=f"{c}: {probability[c]:.0%}", color="white", fontsize=8, **at)
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    shares = localisation.grade_shares(R[0].argmax(0), R[0].amax(0), 10)
    most = int(shares.argmax())  # of NaN, where nothing responds, the first
    told = "nothing responds"
    if np.isfinite(shares[most]):
        told = f"the largest share of the response, {shares[most]:.0%}, is for {most}"
    return figure, (
        f"{what}, its CLEAR map and the ten responses ({relu}): answered {answer} with probability "
        f"{probability[answer]:.0%}; {told}."
    )


def drawing(run: Run, network: nn.Module, x: Tensor, dataset: str, relu: str) -> None:
    """A pad: draw a digit, and see its CLEAR map and the ten responses after each stroke.

    Args:
        run: of the notebook.
        network: answers with the scores of ten digits.
        x: (1, C, H, W), the digit that is shown as long as nothing is drawn.
        dataset: of the digits that the network has learnt from.
        relu: the reading of Eq. 3.
    """
    figure, alt = draw_answer(network, x, relu, "A digit of the test split")
    if not run.attended:
        run.figure(figure, "drawing", alt)
        return
    pad = Pad(picture=as_html(figure, alt))

    def answer(change: dict) -> None:
        digit = as_digit(drawn_on(change["new"]), dataset)
        if digit is None:
            pad.picture = as_html(figure, alt)
        else:
            digit = digit.expand(-1, x.shape[1], -1, -1)
            pad.picture = as_html(*draw_answer(network, digit, relu, "Your drawing"))

    pad.observe(answer, "ink")
    _display(pad, figure, alt)


# CLEAR on digits


def draw_readings(network: nn.Module, images: Tensor, labels: Tensor, i: int) -> Drawn:
    """Image i of images (N, C, H, W) and its CLEAR maps under the four readings of Eq. 3."""
    truth = int(labels[i])
    figure, axes = _panels(5, 1.7)
    figures.show(axes[0], images[i], f"image {i}: a {truth}")
    said = []
    for ax, relu in zip(axes[1:], clear.RULES, strict=True):
        _, R = clear.attentive_responses(network, images[[i]], relu)
        share = localisation.grade_shares(R[0].argmax(0), R[0].amax(0), R.shape[1])[truth]
        figures.show(ax, clear.render(R.clamp(min=0).sqrt(), clear.DIGIT_HUES)[0])
        ax.set_title(relu, color=figures.READING_COLOURS[relu])
        ax.set_xlabel(f"{share:.0%} for a {truth}")
        said.append(f"{relu} {share:.0%}")
    return figure, (
        f"CLEAR maps of test image {i}, a {truth}; share of the response for a {truth}: "
        f"{', '.join(said)}."
    )


def readings(run: Run, network: nn.Module, images: Tensor, labels: Tensor, i: int) -> None:
    """The four readings of Eq. 3 for an image of one's choice: image i, or the first of a digit.

    Args:
        run: of the notebook.
        network: answers with the scores of ten digits.
        images: (N, C, H, W), the test split.
        labels: (N,), their digits.
        i: the image that is shown at first.
    """
    chosen = {i}
    for digit in labels.unique():
        chosen |= set((labels == digit).nonzero()[:4, 0].tolist())
    order = sorted(chosen, key=lambda j: (int(labels[j]), j))
    places = {f"a {labels[j]} (image {j})": j for j in order}
    slider = Slider("Test image", places, f"a {labels[i]} (image {i})")
    with_sliders(run, "play-readings", partial(draw_readings, network, images, labels), slider)


def draw_strong(
    network: nn.Module,
    x: Tensor,
    responses: Mapping[str, Tensor],
    table: pd.DataFrame,
    baseline: float,
    name: str,
    t: float,
) -> Drawn:
    """What is strong in one image at the level t, and where that level lies on Table 1's curve.

    Args:
        network: answers with the scores of ten digits.
        x: (1, C, H, W).
        responses: the response to it by method, each (1, H, W).
        table: columns method, t, only_strong, without_strong: accuracies.
        baseline: what replaces a pixel that is taken away.
        name: the method.
        t: the level, of `table`.
    """
    strong = faithfulness.strong_features(responses[name], t)
    kept = {"only strong": torch.where(strong, x, baseline)}
    kept["without strong"] = torch.where(strong, baseline, x)
    figure, axes = _panels(3, 2.1, width_ratios=(1.5, 1, 1))
    curve = table[table.method == name]
    [point] = curve[curve.t == t].itertuples()
    colour = figures.READING_COLOURS.get(name, "black")
    axes[0].plot(curve.only_strong, curve.without_strong, ".-", color=colour, alpha=0.5)
    axes[0].plot(point.only_strong, point.without_strong, "o", ms=9, color=colour)
    axes[0].set(xlim=(0, 1.02), ylim=(0, 1.02), title=f"all test images: {name}")
    axes[0].set(xlabel="accuracy, only strong", ylabel="accuracy, without")
    answers = []
    for ax, (what, picture) in zip(axes[1:], kept.items(), strict=True):
        with torch.no_grad():
            answers.append(int(network(picture).argmax()))
        figures.show(ax, picture[0], f"{what}: a {answers[-1]}", vmin=0, vmax=1)
    return figure, (
        f"Strong from {t:.0%} of the maximum by {name}: {int(strong.sum())} pixels of this image. "
        f"With only these it is answered {answers[0]}, without them {answers[1]}; over all test "
        f"images the accuracy is {point.only_strong:.1%} and {point.without_strong:.1%}."
    )


def strong(
    run: Run,
    network: nn.Module,
    x: Tensor,
    responses: Mapping[str, Tensor],
    table: pd.DataFrame,
    baseline: float,
    name: str,
) -> None:
    """The level of "strong" in CLEAR's Table 1, to be moved; `draw_strong` says what it takes."""
    levels = {f"{t:.0%} of the maximum": t for t in sorted(table.t.unique())}
    with_sliders(
        run,
        "play-strong",
        partial(draw_strong, network, x, responses, table, baseline),
        Slider("Response", {method: method for method in responses}, name),
        Slider("Strong from", levels, list(levels)[1]),
    )


# Retinas


def draw_crop(
    frames: Mapping[str, np.ndarray], steps: Sequence[Callable], name: str, share: float
) -> Drawn:
    """Selective cropping with another threshold than a twentieth of the way from dark to bright.

    Args:
        frames: photographs uint8 (H, W, 3) by name.
        steps: functions of notebook 3: brightness of a frame, largest region of what is above the
            threshold, box of a region.
        name: of the frame.
        share: the threshold, as a share of the way.
    """
    brightness_of, largest_region, box_of = steps
    frame = frames[name]
    brightness = brightness_of(frame)
    dark, bright = np.percentile(brightness[::2, ::2], [5, 98])
    threshold = dark + share * (bright - dark)
    above = brightness > threshold
    figure, axes = _panels(3, 2)
    left, top, right, bottom = box = box_of(largest_region(above))
    figures.show(axes[0], above, f"above {threshold:.1f} of 255")
    figures.outline(figures.show(axes[1], frame, figures.verbatim(name)), box, "#E69F00")
    figures.show(axes[2], retina.cut(frame, box, 128), "cut out")
    return figure, (
        f"Threshold {share:.0%} of the way from dark to bright: {above.mean():.0%} of the frame "
        f"are above, and the box has {right - left} x {bottom - top} pixels."
    )


def crop(run: Run, frames: Mapping[str, np.ndarray], steps: Sequence[Callable]) -> None:
    """The threshold of selective cropping, to be moved; `draw_crop` says what it takes."""
    places = {f"{share:.0%} of the way": share for share in (0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)}
    with_sliders(
        run,
        "play-crop",
        partial(draw_crop, frames, steps),
        Slider("Frame", {name: name for name in frames}, next(iter(frames))),
        Slider("Threshold", places, "5% of the way"),
    )


def prepared_phantom(
    config: Mapping[str, Any], grade: int, seed: int, kinds: Sequence[str]
) -> tuple[np.ndarray, Tensor, dict[str, np.ndarray]]:
    """A phantom with the lesions of some kinds alone, prepared as a sequencer's photographs were.

    Its twin with all lesions of the grade differs from it in these and in nothing else.

    Args:
        config: of the sequencer's run.
        grade: of the phantom.
        seed: of its eye.
        kinds: of `lib.data.retina.LESIONS`, those to be drawn.

    Returns:
        The photograph uint8 (H, W, 3), the network's image (1, 3, H, W), and for each kind of
        lesion that is there where it is, bool (H, W).
    """
    side = 200
    _, masks = phantom.draw_photograph(grade, seed, side)
    without = np.zeros((side, side), bool)
    for kind in set(retina.LESIONS) - set(kinds):
        without |= localisation.widen(masks[kind], side / 66)  # and its soft edge
    image, masks = phantom.draw_photograph(grade, seed, side, without=without)
    box = retina.crop_box(image) if config["crop"] else (0, 0, side, side)
    photograph = retina.cut(image, box, config["size"])
    prepared = retina.graham(photograph, box) if config["contrast"] == "graham" else photograph
    bits = retina.cut_mask(retina.pack_masks(masks), box, config["size"])
    lesions = {}
    for kind in retina.LESIONS:
        if masks[kind].any():
            lesions[kind] = bits >> retina.MASKS.index(kind) & 1 == 1
    return photograph, explain.network_images(prepared[None], config), lesions


def draw_lesions(
    network: nn.Module,
    config: Mapping[str, Any],
    relu: str,
    seed: int,
    grade: int,
    kinds: Sequence[str],
) -> Drawn:
    """A phantom with some kinds of its lesions, its CLEAR-DR map, each grade's probability.

    Args:
        network: a sequencer.
        config: of its run.
        relu: the reading of Eq. 3.
        seed: of the phantom's eye.
        grade: as which it is drawn.
        kinds: of lesions that are drawn.
    """
    photograph, x, lesions = prepared_phantom(config, grade, seed, kinds)
    device = next(network.parameters()).device
    [eye] = explain.explain_images(network, x.to(device), relu, config["loss"])
    figure, axes = _panels(3, 2.2)
    figures.show(axes[0], photograph, f"phantom of grade {grade}")
    for mask in lesions.values():
        axes[0].contour(mask, [0.5], colors="white", linewidths=0.6)
    figures.show(axes[1], explain.laid_over(eye.R, photograph), f"graded {eye.grade}")
    colours = [hsv_to_rgb((hue, 1, 1)) for hue in clear.GRADE_HUES]
    axes[2].barh(figures.GRADE_NAMES, eye.probabilities, color=colours, edgecolor="black")
    axes[2].set(xlim=(0, 1), title="probability of each grade")
    axes[2].invert_yaxis()
    named = ", ".join(kind.replace("_", " ") for kind in lesions) or "none"
    return figure, (
        f"A phantom drawn as grade {grade}; kinds of lesion in it: {named}. "
        f"Graded {eye.grade} with probability {eye.probabilities[eye.grade]:.0%}."
    )


def lesions(
    run: Run, network: nn.Module, config: Mapping[str, Any], source: str, relu: str, seed: int
) -> None:
    """Lesions of a phantom added and taken away, while its grade and its map follow.

    Args:
        run: of the notebook.
        network: a sequencer.
        config: of its run.
        source: the collection that it has learnt from; where that is none of phantoms, it is not
            asked about one.
        relu: the reading of Eq. 3.
        seed: of the phantom's eye.
    """
    if not source.startswith("phantom"):
        why = f"the sequencer has learnt from {source}, not from phantoms"
        run.skip("lesions added to a phantom", why)
        return
    places = {"none": (), "all of the grade": retina.LESIONS}
    for kind in retina.LESIONS:
        name = kind.replace("_", " ")
        places[f"only {name}"] = (kind,)
        places[f"all but {name}"] = tuple(other for other in retina.LESIONS if other != kind)
    with_sliders(
        run,
        "play-lesions",
        partial(draw_lesions, network, config, relu, seed),
        Slider(
            "Drawn as",
            {f"grade {name}": i for i, name in enumerate(figures.GRADE_NAMES)},
            "grade 2 moderate",
        ),
        Slider("Lesions", places, "all but haemorrhage"),
    )


def draw_tolerance(
    photograph: np.ndarray,
    maps: Mapping[str, np.ndarray],
    lesions: np.ndarray,
    retinas: np.ndarray,
    name: str,
    per_cent: float,
) -> Drawn:
    """The scores of a map on lesions that are widened by a tolerance, the first eye as a picture.

    Args:
        photograph: the first, (H, W, 3).
        maps: (N, H, W) by method.
        lesions: (N, H, W) bool, where any lesion is.
        retinas: (N, H, W) bool, where a response counts.
        name: the method.
        per_cent: the tolerance, of the width.
    """
    pixels = round(per_cent / 100 * lesions.shape[-1])
    targets = [localisation.widen(lesion, pixels) for lesion in lesions] & retinas
    rows = []
    for response, target in zip(maps[name], targets, strict=True):
        hit = localisation.pointing_game(response, target)
        rows.append((hit, localisation.share_inside(response, target)))
    pointing, share = np.mean(rows, axis=0)
    chance = np.mean(targets.sum((1, 2)) / retinas.sum((1, 2)))
    y, x = np.unravel_index(maps[name][0].argmax(), targets[0].shape)
    figure, axes = _panels(3, 2.2)
    figures.show(axes[0], photograph, f"widened by {pixels} pixels")
    figures.show(axes[1], np.sqrt(maps[name][0].clip(min=0)), name)
    for ax in axes[:2]:
        ax.contour(targets[0], [0.5], colors="#56B4E9", linewidths=0.8)
        ax.plot(x, y, "o", mec="red", mfc="none", ms=9)
    axes[2].barh(["pointing game", "share inside", "chance"], [pointing, share, chance])
    axes[2].set(xlim=(0, 1), ylim=(2.5, -0.5), title=f"{len(rows)} photographs")
    return figure, (
        f"{name}, a tolerance of {per_cent:g} % or {pixels} pixels: the maximum lies in a lesion "
        f"in {pointing:.0%} of {len(rows)} photographs, {share:.0%} of the response lies there, by "
        f"chance {chance:.0%}: {share / chance:.1f} times chance."
    )


def tolerance(
    run: Run,
    photograph: np.ndarray,
    maps: Mapping[str, np.ndarray],
    lesions: np.ndarray,
    retinas: np.ndarray,
    name: str,
    per_cent: float,
) -> None:
    """The tolerance of the scores on lesions, to be moved; `draw_tolerance` says what it takes."""
    known = sorted({0.0, 0.8, 1.5, 2.5, 4.0, 6.0, 9.0, float(per_cent)})
    places = {f"{value:g} % of the width": value for value in known}
    with_sliders(
        run,
        "play-tolerance",
        partial(draw_tolerance, photograph, maps, lesions, retinas),
        Slider("Map", {method: method for method in maps}, name),
        Slider("Tolerance", places, f"{per_cent:g} % of the width"),
    )


def draw_random_layers(
    photograph: np.ndarray, steps: Callable[[str], list[tuple]], name: str, depth: int
) -> Drawn:
    """A map of a network whose last layers have random weights, beside that of the trained one.

    Args:
        photograph: (H, W, 3).
        steps: of a method, for 0, 1, ... random layers the map (H, W) and its rank correlation with
            that of the trained network.
        name: the method.
        depth: how many layers are random.
    """
    of_method = steps(name)
    response, alike = of_method[depth]
    figure, axes = _panels(4, 1.9, width_ratios=(1, 1, 1, 1.3))
    figures.show(axes[0], photograph, "photograph")
    figures.show(axes[1], np.sqrt(of_method[0][0].clip(min=0)), f"{name}, trained")
    figures.show(axes[2], np.sqrt(response.clip(min=0)), f"random: the last {depth}")
    axes[3].plot([correlation for _, correlation in of_method], ".-", color="grey")
    axes[3].plot(depth, alike, "o", ms=9, color="#D55E00")
    axes[3].xaxis.get_major_locator().set_params(integer=True)
    axes[3].set(xlabel="random layers", title=f"alike: {alike:.2f}", ylim=(-0.1, 1.05))
    return figure, (
        f"{name}, the last {depth} of {len(of_method) - 1} layers random: the rank correlation of "
        f"the map with the trained network's is {alike:.2f}; all random, {of_method[-1][1]:.2f}."
    )


def random_layers(
    run: Run,
    network: nn.Module,
    images: Tensor,
    photograph: np.ndarray,
    explainers: Mapping[str, Callable],
    where: np.ndarray,
    name: str,
) -> None:
    """Layers made random one after the other, from the last on (Adebayo et al. 2018), to be chosen.

    Args:
        run: of the notebook.
        network: a sequencer.
        images: (2 or more, 3, H, W); the map of the first is shown.
        photograph: that one to look at.
        explainers: of each method, as `faithfulness.sanity` takes it.
        where: (N, H, W) bool, where maps are compared.
        name: the method shown at first.
    """

    @cache
    def steps(method: str) -> list[tuple]:
        maps = []

        def keep(each: nn.Module, pictures: Tensor) -> Tensor:
            found = explainers[method](each, pictures)
            maps.append(np.asarray(found[0]))
            return found

        table = faithfulness.sanity(network, images, keep, where, run.parameters["seed"])
        return list(zip(maps, [1.0, *table.positive], strict=True))

    depths = {"none": 0}
    for depth in range(1, len(steps(name))):
        depths[f"the last {depth}"] = depth
    draw = partial(draw_random_layers, photograph, steps)
    methods = Slider("Map", {method: method for method in explainers}, name)
    with_sliders(run, "play-random", draw, methods, Slider("Random layers", depths, "the last 1"))
