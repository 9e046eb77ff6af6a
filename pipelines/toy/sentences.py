"""Makes sentences that are true for exactly one object of a scene.

    attributes   the large blue bars
    place        leftmost red circle · the square at the top
    relation     the red circle left of the small blue square

A sentence is used only if another object of the scene has the named shape or colour, so that no single word identifies
the object. Places and relations compare the centres of objects along one axis. They are used only if they are needed to
distinguish objects of the named kind, and if no two of these objects are too close to each other (`CLEAR`).
"""

from dataclasses import dataclass, replace
from random import Random

from pipelines.toy.scenes import Scene, Thing

CLEAR = 0.07
"""Smallest distance of two centres along an axis, as a share of that side, at which words distinguish them."""
KINDS = ("attributes", "place", "relation")

_PLACES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
"""Axis and sign for each side. The object at the side has the smallest sign * coordinate."""
_RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
_PLACE_WORDS = {
    "left": ("leftmost {noun}", "{noun} on the left"),
    "right": ("rightmost {noun}", "{noun} on the right"),
    "top": ("top {noun}", "{noun} at the top"),
    "bottom": ("bottom {noun}", "{noun} at the bottom"),
}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_NAMED = (
    ("colour", "shape"),
    ("size", "colour", "shape"),
    ("size", "colour"),
    ("size", "shape"),
    ("colour",),
    ("shape",),
)
"""The combinations of attributes that a sentence may name. The size never occurs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The meaning of a sentence.

    Attributes:
        size: `small` or `large`; None if the sentence does not name it.
        colour: Name of the colour; None if the sentence does not name it.
        shape: Name of the shape; None if the sentence does not name it ("one").
        place: `left`, `right`, `top` or `bottom`, for the outermost object with these attributes; None if the sentence
            does not name it.
        relation: `left of`, `right of`, `above` or `below` the anchor; None if the sentence does not name it.
        anchor: The object to which the relation refers; None without a relation.
    """

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    place: str | None = None
    relation: str | None = None
    anchor: "Description | None" = None

    @property
    def kind(self) -> str:
        """The kind of the description, one of `KINDS`."""
        return "relation" if self.relation else "place" if self.place else "attributes"

    def matches(self, scene: Scene) -> tuple[Thing, ...]:
        """Return the objects for which the description is true; empty if two positions are too close to compare."""
        matching = tuple(t for t in scene.things if self._fits(t))
        if self.place:
            return _outermost(matching, scene, *_PLACES[self.place])
        if self.relation and self.anchor:
            anchors = self.anchor.matches(scene)
            if len(anchors) != 1:
                return ()
            return _beside(matching, anchors[0], scene, *_RELATIONS[self.relation])
        return matching

    def _fits(self, thing: Thing) -> bool:
        return (
            self.size in (None, thing.size)
            and self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
        )


def describe(scene: Scene, target: Thing, rng: Random, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Return up to three different sentences, each true for `target` and for no other object of the scene.

    Args:
        scene: The scene.
        target: An object of the scene.
        rng: Generator that chooses among the possible sentences.
        kinds: The kinds of sentences that may be used, from `KINDS`.

    Returns:
        Lower-case sentences of at most 12 words; empty if no sentence distinguishes the object from the others.
    """
    wanted = rng.randint(2, 3)
    sentences: list[str] = []
    for kind in rng.sample(kinds, len(kinds)) + rng.sample(kinds, len(kinds)):
        description = _find(scene, target, kind, rng)
        sentence = say(description, rng) if description else None
        if sentence and sentence not in sentences:
            sentences.append(sentence)
        if len(sentences) == wanted:
            break
    return sentences


def say(description: Description, rng: Random) -> str:
    """Return a description as a sentence. `rng` chooses among equivalent wordings."""
    noun = " ".join(filter(None, (description.size, description.colour, description.shape or "one")))
    if description.place:
        noun = rng.choice(_PLACE_WORDS[description.place]).format(noun=noun)
    if description.relation and description.anchor:
        relation = rng.choice(_RELATION_WORDS[description.relation])
        return f"the {noun} {relation} the {say(description.anchor, rng).removeprefix('the ')}"
    return rng.choice(("the {}", "{}")).format(noun)


def _find(scene: Scene, target: Thing, kind: str, rng: Random) -> Description | None:
    """Return a description of a kind that is true only for the target; None if there is none."""
    for named in rng.sample(_NAMED, len(_NAMED)):
        head = _head(target, named)
        matching = head.matches(scene)
        if not any(head.shape == t.shape or head.colour == t.colour for t in scene.others(target)):
            continue
        if kind == "attributes":
            if matching == (target,):
                return head
        elif len(matching) > 1:  # otherwise a place or relation would not be needed
            candidates = _placed(head) if kind == "place" else _related(head, scene)
            for candidate in rng.sample(candidates, len(candidates)):
                if candidate.matches(scene) == (target,):
                    return candidate
    return None


def _head(thing: Thing, named: tuple[str, ...]) -> Description:
    return Description(**{name: getattr(thing, name) for name in named})


def _placed(head: Description) -> list[Description]:
    return [replace(head, place=place) for place in _PLACES]


def _related(head: Description, scene: Scene) -> list[Description]:
    matching = head.matches(scene)
    anchors = [
        anchor
        for thing in scene.things
        if thing not in matching  # "the square left of the large square" would be ambiguous
        for named in _NAMED
        if (anchor := _head(thing, named)).shape and anchor.matches(scene) == (thing,)
    ]
    return [replace(head, relation=relation, anchor=anchor) for relation in _RELATIONS for anchor in anchors]


def _outermost(things: tuple[Thing, ...], scene: Scene, axis: int, sign: int) -> tuple[Thing, ...]:
    ordered = sorted(things, key=lambda thing: sign * thing.centre[axis])
    if len(ordered) > 1 and _gap(ordered[0], ordered[1], scene, axis, sign) < CLEAR:
        return ()
    return tuple(ordered[:1])


def _beside(things: tuple[Thing, ...], anchor: Thing, scene: Scene, axis: int, sign: int) -> tuple[Thing, ...]:
    gaps = [(thing, _gap(thing, anchor, scene, axis, sign)) for thing in things if thing is not anchor]
    if any(abs(gap) < CLEAR for _, gap in gaps):
        return ()
    return tuple(thing for thing, gap in gaps if gap > 0)


def _gap(thing: Thing, other: Thing, scene: Scene, axis: int, sign: int) -> float:
    """Return the distance from `thing` to `other` along an axis, away from the side, as a share of the picture."""
    extent = scene.image_size[1 - axis]
    return sign * (other.centre[axis] - thing.centre[axis]) / extent
