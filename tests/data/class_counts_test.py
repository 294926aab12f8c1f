from nsk.data.class_counts import describe_classes


def test_few_classes_are_all_shown():
    per_class = {"test": [1, 0], "dev": [2, 2], "labeled": [30, 4_000]}
    assert describe_classes(["cat", "do\ng"], per_class) == [
        r"Classes (test/dev/labeled images): cat: 1/2/30, do\ng: 0/2/4,000.",
        r"Without test images: do\ng.",
    ]


def test_of_many_classes_ten_and_the_smallest_and_largest_are_shown():
    names = [f"c{number:03d}" for number in range(200)]
    dev, labeled = [0] * 20 + [1] * 180, [7] * 200
    dev[50] = 9
    shown, missing = describe_classes(names, {"dev": dev, "labeled": labeled})
    assert shown.startswith("Classes (dev/labeled images): c000: 0/7, c001: 0/7,")
    assert ", c009: 0/7 and 190 more. Per class 0 (c000) to 9 (c050) dev; 7 labeled." in shown
    assert missing.startswith("Without dev images: c000, ") and missing.endswith(" and 10 more.")
