"""What is said about unlabelled images that are not like dev."""

import pytest

from nsk.pseudo.pool_report import suggest


def compared(beyond, unknown_share):
    distance = {"beyond_limit": beyond}
    return {"unlike": ["unknown"], "images": 400, "unknown_share": unknown_share} | {
        "distance": distance
    }


@pytest.mark.parametrize(("beyond", "share"), [(16, 0.44), (85, 0.66), (20, 0.06)])
def test_a_filter_that_leaves_out_little_is_not_recommended(beyond, share):
    advice = suggest(compared(beyond, share), ["cat", "dog"])
    assert advice.startswith(f"Only {beyond / 400:.0%} are farther from dev than 95% of the dev")
    assert "give a dev split like them" in advice and "filter leaves out" not in advice


@pytest.mark.parametrize(("beyond", "share"), [(252, 1.0), (400, 1.0), (150, 0.35)])
def test_a_filter_is_recommended_once(beyond, share):
    advice = suggest(compared(beyond, share), ["cat", "dog"])
    assert f"--unknown_classes=filter leaves out the {beyond} images" in advice
    advice = suggest(compared(beyond, share), ["cat", "dog"], is_filtered=True)
    assert "--unknown_classes" not in advice
    assert "remove images of other classes or sources" in advice
