# %% [markdown]
# # Exercises to notebook 5 · CLEAR-DR's figures
#
# Four exercises on `notebooks/05_clear_dr_figures.ipynb`, sections 5.1 to 5.4. Write your answer
# in place of `None`, run the cell, then the check below it. Hints unfold one by one.
#
# The checks use made-up responses: neither photographs nor a sequencer are needed.

# %%
import math

import numpy as np
from matplotlib.colors import hsv_to_rgb

from lib.methods import clear

import checks

checks.begin("05_clear_dr_figures")
hues = np.array(clear.GRADE_HUES)

# %% [markdown]
# ## 5.1 One pixel (predict, 1 point, 3 minutes)
#
# At a pixel the five grade kernels respond with $R = (-1, 2, 5, 0, 3)$, for grades 0 to 4. The
# photograph is graded 4. Which grade's colour has the pixel in the CLEAR-DR map, and which
# response makes its brightness, before the square root? A tuple `(grade, response)`.
#
# <details><summary>Hint 1</summary>Eq. 4 and 5 look at the pixel alone.</details>

# %% tags=["stub"]
pixel = None  # (grade, response)

# %% tags=["solution"]
pixel = (2, 5)

# %% tags=["misconception"] shows="predicted grade"
pixel = (4, 3)

# %% tags=["misconception"] shows="summed"
pixel = (2, 9)

# %% tags=["check"]
checks.check("5.1", pixel, points=1)

# %% [markdown]
# ## 5.2 The CLEAR-DR map by hand (compute, 3 points, 15 minutes)
#
# From the responses `R` (5, H, W) make the picture (H, W, 3), red, green and blue from 0 to 1. The
# hue is that of the dominant grade (`hues` has all five), the saturation is 1, the value is the
# square root of the dominant response over that of the image's maximum. What is negative is black.
#
# <details><summary>Hint 1</summary>`hues[R.argmax(0)]` is the hue of each pixel.</details>
# <details><summary>Hint 2</summary>`hsv_to_rgb` takes an array (H, W, 3) of hue, saturation and
# value; `np.dstack` puts three (H, W) together.</details>


# %% tags=["stub"]
def clear_dr_map(R):
    return None  # (H, W, 3)


# %% tags=["solution"]
def clear_dr_map(R):
    hue = hues[R.argmax(0)]
    value = np.sqrt(R.max(0).clip(min=0))
    return hsv_to_rgb(np.dstack([hue, np.ones_like(hue), value / value.max()]))


# %% tags=["misconception"] shows="no root"
def clear_dr_map(R):
    value = R.max(0).clip(min=0) / R.max()
    return hsv_to_rgb(np.dstack([hues[R.argmax(0)], np.ones_like(value), value]))


# %% tags=["misconception"] shows="each by its own"
def clear_dr_map(R):
    level = np.sqrt(np.array([r.clip(min=0) / r.max() for r in R]))
    value = level.max(0)
    return hsv_to_rgb(np.dstack([hues[level.argmax(0)], np.ones_like(value), value]))


# %% tags=["check"]
checks.check("5.2", clear_dr_map, points=3)

# %% [markdown]
# ## 5.3 For which grade, and how much of it (compute, 3 points, 10 minutes)
#
# Below the eye of 5.4 stands each grade's share of the response: of all positive dominant
# response, how much lies where that grade dominates? From `R` (5, H, W), return the five shares.
#
# <details><summary>Hint 1</summary>First the dominant grade and the dominant response at each
# pixel, as in 5.1; the other four responses of a pixel do not count.</details>
# <details><summary>Hint 2</summary>`response[grade_map == grade].sum()` for each grade, negative
# responses set to 0.</details>


# %% tags=["stub"]
def shares(R):
    return None  # (5,)


# %% tags=["solution"]
def shares(R):
    grade_map = R.argmax(0)
    response = R.max(0).clip(min=0)
    sums = np.array([response[grade_map == grade].sum() for grade in range(5)])
    return sums / sums.sum()


# %% tags=["misconception"] shows="pixels"
def shares(R):
    dominant = R.argmax(0)[R.max(0) > 0]
    return [(dominant == grade).mean() for grade in range(5)]


# %% tags=["misconception"] shows="all responses"
def shares(R):
    positive = np.maximum(R, 0)
    return positive.sum((1, 2)) / positive.sum()


# %% tags=["check"]
checks.check("5.3", shares, points=3)

# %% [markdown]
# ## 5.4 On the clock's face (extend, 3 points, 12 minutes)
#
# A radiologist says "at 2 o'clock". Write the hour, 1 to 12, at which a `point` (x, y) lies as
# seen from an `origin` (x, y), both in pixels: 12 is up, 3 is on the right. Each hour reaches half
# an hour to both sides.
#
# <details><summary>Hint 1</summary>In an image y grows downwards: how far up is the
# point?</details>
# <details><summary>Hint 2</summary>`math.atan2(right, up)` is the angle from 12 o'clock,
# clockwise; a full turn is `math.tau`.</details>


# %% tags=["stub"]
def clock_hour(point, origin):
    return None  # 1 to 12


# %% tags=["solution"]
def clock_hour(point, origin):
    right = point[0] - origin[0]
    up = origin[1] - point[1]
    hour = round(math.atan2(right, up) / math.tau * 12) % 12
    return hour or 12


# %% tags=["misconception"] shows="upside down"
def clock_hour(point, origin):
    right, up = point[0] - origin[0], point[1] - origin[1]
    return round(math.degrees(math.atan2(right, up)) / 30) % 12 or 12


# %% tags=["misconception"] shows="quarter off"
def clock_hour(point, origin):
    right, down = point[0] - origin[0], point[1] - origin[1]
    return round(math.degrees(math.atan2(down, right)) / 30) % 12 or 12


# %% tags=["check"]
checks.check("5.4", clock_hour, points=3)

# %%
checks.summary()
