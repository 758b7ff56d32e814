# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which files are masks, and of which image: by the names of files and folders that public data sets have.

``masks/a.png``; ``test-mask/a.jpg`` for ``test-image/a.jpg``; ``a_mask.png`` and ``a_mask_1.png`` (joined);
``Masks/mask_1.png`` for ``Images/bus_1.png``; ``labelsTr/a.nii.gz`` for ``imagesTr/a_0000.nii.gz``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from .folders import stem_of

LABEL_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations", "seg"}
LABEL_WORDS |= {"gt", "groundtruth", "ground", "truth", "msk", "msks", "labelmap", "labelmaps", "contour", "contours"}
IMAGE_WORDS = {"image", "images", "img", "imgs", "frame", "frames", "data", "original", "originals"}
IMAGE_WORDS |= {"png", "jpg", "jpeg", "bmp", "tif", "nii", "nifti", "mha", "nrrd", "dicom"}
IMAGE_WORDS |= {"us", "ultrasound", "bmode", "scan", "scans", "expert", "manual"}  # nor do these name what is shown
SPLIT_WORDS = {"train": "training", "training": "training", "trainval": "training", "tr": "training"}
SPLIT_WORDS |= {"val": "validation", "valid": "validation", "validation": "validation", "dev": "validation"}
SPLIT_WORDS |= {"test": "test", "testing": "test", "ts": "test"}
NO_ORGAN = {"set", "dataset", "database", "case", "study", "series", *SPLIT_WORDS}
NO_ORGAN |= {
    word + ending for word in ("patient", "pat", "subject", "sub", "case", "id", "ses") for ending in ("", "s")
}
LABEL_NAMES = "mask|msk|label|labelmap|annotation|segmentation|seg|gt|truth|contour"
LABEL_ENDING = re.compile(rf"(?i)[ _-](?:{LABEL_NAMES})(?P<number>[ _-]?\d+)?$")
LABEL_BEGINNING = re.compile(rf"(?i)^(?:(?:expert|manual)[ _-]+)?(?:{LABEL_NAMES})[ _-]+")
IMAGE_ENDING = re.compile(r"(?i)[ _-](?:image|img|us|bmode|0000)$")  # the last one is nnU-Net's number of a channel
FIRST_WORD = re.compile(r"^[A-Za-z]+[ _-]+")
FOV_ENDINGS = ("_fov", "-fov")


class Masks:
    """The mask files among the readable ``paths`` below ``root``, and which of them belong to an image.

    ``images`` are the files that are no masks, ``files`` those that are. The name of ``root`` tells nothing.
    ``of_parts`` are masks in folders such as ``liver_masks`` beside ``images``, each of which has an image of its name:
    they are no images, but belong to none, since several such folders would be masks of different structures.
    """

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.images: list[Path] = []
        self.fov: dict[tuple[Path, str], Path] = {}
        self.named: dict[tuple[Path, str], list[Path]] = defaultdict(list)  # by folder and the image's name
        self.renamed: dict[tuple[Path, str], list[Path]] = defaultdict(list)  # of mask_1.png, by folder and "1"
        stems = {(composed(path.parent), name) for path in paths for name in bare_names(path)}
        names: dict[Path, set[str]] = defaultdict(set)
        for folder, name in stems:
            names[folder].add(name)
        parts = folders_of_parts(names)
        self.of_parts: set[Path] = set()
        is_labels = cache(is_label_folder)  # for these files alone: folders come and go
        tails = {(folder, FIRST_WORD.sub("", stem)) for folder, stem in stems if not LABEL_BEGINNING.match(stem)}
        for path in paths:
            folder, stem = composed(path.parent), stem_of(path)
            below = len(path.parent.relative_to(root).parts)
            apart = any(is_labels(part) for part in [path.parent, *path.parent.parents][:below])
            ending, beginning = LABEL_ENDING.search(stem), LABEL_BEGINNING.match(stem)
            bare = stem[: ending.start()] if ending else stem
            # a number after the word, or the word in front, says "mask" only where the image of it is there
            marked = ending and (ending["number"] is None or (folder, bare) in stems)
            if stem.lower().endswith(FOV_ENDINGS):
                self.fov[folder, stem[:-4]] = path
            elif folder in parts and not apart:
                self.of_parts.add(path)
            elif apart or marked:
                self.named[folder, bare].append(path)
                if ending:
                    self.named.setdefault((folder, stem), [path])
                if beginning:
                    self.renamed[folder, stem[beginning.end() :]].append(path)
            elif beginning and (folder, stem[beginning.end() :]) in tails:
                self.renamed[folder, stem[beginning.end() :]].append(path)
            else:
                self.images.append(path)
        # the folders of masks by all but one of their parts: to look at each for each image would take too long
        self.folders: dict[tuple, list[Path]] = defaultdict(list)
        for found in sorted({folder for folder, _ in (*self.named, *self.renamed)}):
            for places in _all_but_one(found):
                self.folders[places].append(found)
        self.files = set(paths) - set(self.images)
        self.alike = Counter((composed(path.parent), FIRST_WORD.sub("", stem_of(path))) for path in self.images)

    def of(self, image: Path) -> list[Path]:
        """The masks of an image, of the first folder that has any."""
        names = bare_names(image)
        tail = FIRST_WORD.sub("", names[0])
        here = composed(image.parent)
        near = {folder for places in (here.parts, *_all_but_one(here)) for folder in self.folders.get(places, ())}
        for folder in [here, *sorted(f for f in near if is_counterpart(here, f))]:
            found = next((self.named[folder, name] for name in names if (folder, name) in self.named), None)
            if not found and self.alike[here, tail] == 1:
                found = self.renamed.get((folder, tail))
            if found:
                return found
        return []

    def fov_of(self, image: Path) -> Path | None:
        """The mask of an image's field of view."""
        return self.fov.get((composed(image.parent), stem_of(image)))


class PatternMasks(Masks):
    """Masks by a rule that the user gives (:func:`path_by_rule`); what else looks like one belongs to no image."""

    def __init__(self, root: Path, paths: Sequence[Path], rule: str) -> None:
        files = {composed(path): path for path in paths}
        leads = {path: files.get(composed(root / path_by_rule(rule, path.relative_to(root)))) for path in paths}
        self.found = {path: mask for path, mask in leads.items() if mask not in (path, None)}
        by_rule = set(self.found.values())
        super().__init__(root, [path for path in paths if path not in by_rule])
        self.files |= by_rule

    def of(self, image: Path) -> list[Path]:
        return [self.found[image]] if image in self.found else []


def path_by_rule(rule: str, below: Path) -> str:
    """The path of the mask of an image, both below the folder of the data, by ``PATTERN=>REPLACEMENT``.

    Raises:
        ValueError: for what is no regular expression and its replacement.
    """
    pattern, sign, replacement = rule.partition("=>")
    try:
        if sign:
            return re.sub(pattern, replacement, below.as_posix())
        reason = "there is no '=>' in it"
    except (re.error, IndexError) as error:
        reason = str(error)
    raise ValueError(rf"label_pattern {rule!r} is no 'PATTERN=>REPLACEMENT', such as '\.png$=>_mask.png': {reason}.")


def composed(folder: Path) -> Path:
    """One name for a folder whose letters with accents are composed or decomposed."""
    return Path(unicodedata.normalize("NFC", str(folder)))


def bare_names(path: Path) -> list[str]:
    """A file's name without its type, and without what may mark it as the image of a pair, as in a_0000.nii.gz."""
    stem = stem_of(path)
    return [stem, IMAGE_ENDING.sub("", stem)] if IMAGE_ENDING.search(stem) else [stem]


def words_of(name: str) -> list[str]:
    """The words and numbers of a name, in lower case; letters of other alphabets are words of their own."""
    return re.findall(r"[a-z]+|\d+|[^\W\d_a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def core(name: str) -> list[str]:
    """The words of a folder's name that tell it from the others of a data set, images or labels."""
    return [word for word in words_of(name) if word not in LABEL_WORDS | IMAGE_WORDS]


def says_something(name: str) -> bool:
    """Whether a folder's name may be that of an organ."""
    return any(len(word) > 1 and word not in NO_ORGAN and not word.isdigit() for word in core(name))


def _all_but_one(folder: Path) -> list[tuple]:
    """The parts of a path without each of them in turn, and which one that is; without the last, the folder above."""
    parts = folder.parts
    return [parts[:-1], *((place, *parts[:place], *parts[place + 1 :]) for place in range(len(parts)))]


def is_label_folder(folder: Path) -> bool:
    """By its name: ``masks``; or ``test-mask`` beside ``test-image``, but no ``Dataset_with_GT``."""
    if not LABEL_WORDS & set(words_of(folder.name)):
        return False
    others = (path.name for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    return not core(folder.name) or any(
        core(name) == core(folder.name) and not LABEL_WORDS & set(words_of(name)) for name in others
    )


def folders_of_parts(names: Mapping[Path, set[str]]) -> set[Path]:
    """The folders whose name ends in a word for masks, where the folder above or one beside has images of all names."""
    beside: dict[Path, list[Path]] = defaultdict(list)
    for folder in names:
        if not LABEL_WORDS & set(words_of(folder.name)):
            beside[folder.parent].append(folder)
    return {
        folder
        for folder, own in names.items()
        if LABEL_WORDS & set(words_of(folder.name)[-1:])
        and any(own <= names.get(other, set()) for other in (folder.parent, *beside.get(folder.parent, ())))
    }


def is_counterpart(images: Path, masks: Path) -> bool:
    """Whether ``masks`` is the folder for the labels of ``images``: equal but for one component, or just below it."""
    if masks.parent == images:
        return True
    if len(images.parts) != len(masks.parts):
        return False
    unlike = [(a, b) for a, b in zip(images.parts, masks.parts, strict=True) if a != b]
    return len(unlike) == 1 and (not core(unlike[0][1]) or core(unlike[0][0]) == core(unlike[0][1]))
