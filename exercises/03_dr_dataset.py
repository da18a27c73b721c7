# %% [markdown]
# # Exercises to notebook 3 · From photographs to a data set
#
# Four exercises on `notebooks/03_dr_dataset.ipynb`, sections 3.2 to 3.8. Write your answer in
# place of `None`, run the cell, then the check below it. Hints unfold one by one.
#
# The photographs are phantoms, drawn on the spot: no data has to be there, and none is changed.

# %%
import numpy as np

from lib.data import phantom

import checks

checks.begin("03_dr_dataset")
photographs = np.array([phantom.draw_photograph(grade, 7, 96)[0] for grade in (0, 2, 4)])

# %% [markdown]
# ## 3.1 Four eyes, four grades (predict, 2 points, 5 minutes)
#
# Which grades of the ICDR scale have these eyes? A list of four numbers.
#
# - A: a dozen microaneurysms, nothing else.
# - B: microaneurysms, haemorrhages in two quadrants, hard exudates near the fovea.
# - C: a very bright optic disc, clear vessels, nothing else.
# - D: new vessels on the disc, two or three haemorrhages.
#
# <details><summary>Hint 1</summary>The table below the labelled eye in 3.2 has a row for each
# grade.</details>
# <details><summary>Hint 2</summary>The scale goes by the worst sign there is, not by how many
# signs there are.</details>

# %% tags=["stub"]
grades = None  # four numbers, A to D

# %% tags=["solution"]
grades = [1, 2, 0, 4]

# %% tags=["misconception"] shows="disc counted"
grades = [1, 2, 1, 4]

# %% tags=["misconception"] shows="two quadrants"
grades = [1, 3, 0, 4]

# %% tags=["check"]
checks.check("3.1", grades, points=2)

# %% [markdown]
# ## 3.2 A box that a notch does not widen (compute, 3 points, 12 minutes)
#
# Step 4 of the cropping. A `region` (H, W) of True and False is the retina as it was found; some
# cameras show a notch at its rim. Return the box `(left, top, right, bottom)` of the columns and
# rows that have at least 8 % of the pixels of the fullest one; `right` and `bottom` are exclusive.
#
# <details><summary>Hint 1</summary>`region.sum(axis=0)` counts the pixels of each
# column.</details>
# <details><summary>Hint 2</summary>`np.flatnonzero(inside)` lists the columns that count, in
# order.</details>


# %% tags=["stub"]
def box_of(region):
    return None  # (left, top, right, bottom)


# %% tags=["solution"]
def box_of(region):
    in_column = region.sum(axis=0)
    in_row = region.sum(axis=1)
    columns = np.flatnonzero(in_column >= 0.08 * in_column.max())
    rows = np.flatnonzero(in_row >= 0.08 * in_row.max())
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


# %% tags=["misconception"] shows="notch"
def box_of(region):
    y, x = region.nonzero()
    return x.min(), y.min(), x.max() + 1, y.max() + 1


# %% tags=["misconception"] shows="inclusive"
def box_of(region):
    ends = []
    for extent in (region.sum(0), region.sum(1)):
        inside = [i for i, count in enumerate(extent) if count >= 0.08 * max(extent)]
        ends.append((inside[0], inside[-1]))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


# %% tags=["check"]
checks.check("3.2", box_of, points=3)

# %% [markdown]
# ## 3.3 Photographs at random (predict, 2 points, 6 minutes)
#
# A collection has both eyes of 1,000 patients. Somebody draws a tenth of the 2,000 *photographs*
# for the test split, at random. How many patients have one eye in the test split and the other in
# the training split, on average? Work it out on paper; the nearest ten is near enough.
#
# <details><summary>Hint 1</summary>For one patient: what is the probability that the left eye is
# in the test split and the right one is not?</details>
# <details><summary>Hint 2</summary>And the other way round?</details>

# %% tags=["stub"]
torn = None  # one number

# %% tags=["solution"]
torn = 1000 * 2 * 0.1 * 0.9

# %% [markdown] tags=["solution"]
# Almost every fifth patient, and nearly all of the test split: its eyes are no longer unseen.

# %% tags=["misconception"] shows="one way"
torn = 90

# %% tags=["misconception"] shows="all of the test"
torn = 200

# %% tags=["check"]
checks.check("3.3", torn, points=2)

# %% [markdown]
# ## 3.4 Mean and deviation without the black (extend, 3 points, 12 minutes)
#
# Notebook 3 counts the black frame among the pixels. Leave it out: from `photographs` uint8 (n, H,
# W, 3) and `inside` (n, H, W), True on the retina, return two arrays (3,), the mean of each
# channel and its deviation, with levels from 0 to 1.
#
# <details><summary>Hint 1</summary>`photographs[inside]` has a row for each pixel inside, of all
# photographs together.</details>


# %% tags=["stub"]
def moments(photographs, inside):
    return None  # the means, the deviations


# %% tags=["solution"]
def moments(photographs, inside):
    pixels = photographs[inside] / 255
    return pixels.mean(axis=0), pixels.std(axis=0)


# %% tags=["misconception"] shows="black counted"
def moments(photographs, inside):
    return photographs.mean((0, 1, 2)) / 255, photographs.std((0, 1, 2)) / 255


# %% tags=["misconception"] shows="levels"
def moments(photographs, inside):
    return photographs[inside].mean(0), photographs[inside].std(0)


# %% tags=["misconception"] shows="channels together"
def moments(photographs, inside):
    pixels = photographs[inside] / 255
    return [pixels.mean()] * 3, [pixels.std()] * 3


# %% tags=["check"]
checks.check("3.4", moments, points=3)

# %%
checks.summary()
