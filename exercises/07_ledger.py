# %% [markdown]
# # Exercises to notebook 7 · The ledger
#
# Four exercises on `notebooks/07_ledger.ipynb`, sections 7.2 to 7.5: how a number becomes a
# verdict. Write your answer in place of `None`, run the cell, then the check below it. Hints
# unfold one by one.
#
# No other notebook has to be run before.

# %%
import pandas as pd

import checks

checks.begin("07_ledger")
trainings = pd.DataFrame({"gated": [0.01, 0.12, 0.02], "guided": [0.04, 0.03, 0.04]})

# %% [markdown]
# ## 7.1 A number that nobody has (predict, 1 point, 3 minutes)
#
# The condition of a claim is `error < 0.05`. The notebook that computes `error` has not been run,
# so `error` is NaN, and Python says that `NaN < 0.05` is False. What belongs into the ledger:
# "reproduced", "not reproduced" or "not run"?
#
# <details><summary>Hint 1</summary>What would you tell an author whose claim you have not
# tried?</details>

# %% tags=["stub"]
verdict = None  # one of the three, as a text

# %% tags=["solution"]
verdict = "not run"

# %% tags=["misconception"] shows="not reproduced"
verdict = "not reproduced"

# %% tags=["misconception"] shows="reproduced"
verdict = "reproduced"

# %% tags=["check"]
checks.check("7.1", verdict, points=1)

# %% [markdown]
# ## 7.2 Better than every rival (compute, 2 points, 6 minutes)
#
# A map "lies on lesions" only if it beats chance and all rivals. Write the condition: `score` is
# more than `margin` times the score of each of the `rivals`, a dictionary of names and scores.
# Return True or False.
#
# <details><summary>Hint 1</summary>Which one of the rivals decides?</details>


# %% tags=["stub"]
def beats(score, rivals, margin):
    return None  # True or False


# %% tags=["solution"]
def beats(score, rivals, margin):
    return score > margin * max(rivals.values())


# %% tags=["misconception"] shows="mean rival"
def beats(score, rivals, margin):
    mean = sum(rivals.values()) / len(rivals)
    return score > margin * mean


# %% tags=["misconception"] shows="margin forgotten"
def beats(score, rivals, margin):
    return all(score > rival for rival in rivals.values())


# %% tags=["check"]
checks.check("7.2", beats, points=2)

# %% [markdown]
# ## 7.3 Skill (compute, 2 points, 8 minutes)
#
# CLEAR-DR's 73.2 % stands beside 73.9 % for always answering "no retinopathy". Write a score that
# is 1 for perfect answers, 0 for always answering the commonest grade, negative for less, and
# grows evenly with the accuracy in between. Both arguments are shares in [0, 1].
#
# <details><summary>Hint 1</summary>A straight line that is 0 at `majority` and 1 at 1.</details>


# %% tags=["stub"]
def skill(accuracy, majority):
    return None  # one number


# %% tags=["solution"]
def skill(accuracy, majority):
    return (accuracy - majority) / (1 - majority)


# %% [markdown] tags=["solution"]
# For the paper's number it is -0.03.


# %% tags=["misconception"] shows="difference"
def skill(accuracy, majority):
    return accuracy - majority


# %% tags=["misconception"] shows="ratio"
def skill(accuracy, majority):
    return accuracy / majority


# %% tags=["check"]
checks.check("7.3", skill, points=2)

# %% [markdown]
# ## 7.4 In every training (extend, 3 points, 10 minutes)
#
# `distances` is a table with a row for each training and a column for each reading: how far the
# paper's point lies from the reading's curve. Return a list of the readings that are below `bound`
# in *every* training, in the table's order. (`trainings` above is a small one to try.)
#
# <details><summary>Hint 1</summary>`distances[name] < bound` is True or False for each
# training.</details>
# <details><summary>Hint 2</summary>A column of them has `.all()` and `.any()`.</details>


# %% tags=["stub"]
def always_near(distances, bound):
    return None  # a list of names


# %% tags=["solution"]
def always_near(distances, bound):
    return [name for name in distances if (distances[name] < bound).all()]


# %% tags=["misconception"] shows="on average"
def always_near(distances, bound):
    means = distances.mean()
    return means.index[means < bound].tolist()


# %% tags=["misconception"] shows="in any"
def always_near(distances, bound):
    return [name for name in distances if distances[name].min() < bound]


# %% tags=["check"]
checks.check("7.4", always_near, points=3)

# %%
checks.summary()
