"""CVAT for images 1.1."""

from pathlib import Path

import pytest

from refseg.errors import AnnotationError

from .example import Example, area, read

# The mask's box is 4 x 3 pixels at column 2, row 5: its rows are 0111, 1110, 0000.
XML = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id></task></meta>
  <image id="0" name="a.jpg" subset="Train" width="20" height="10">
    <polygon label="cup" source="manual" occluded="0" points="1.00,2.00;5.00,2.00;5.00,6.00;1.00,6.00" z_order="0">
      <attribute name="caption">the cup
        the left cup</attribute>
    </polygon>
    <box label="door" xtl="10.0" ytl="0.0" xbr="12.0" ybr="10.0" z_order="0"></box>
    <mask label="cat" rle="1,6,5" left="2" top="5" width="4" height="3" z_order="0"></mask>
    <polygon label="dog" group_id="3" points="14,1;16,1;16,3;14,3"><attribute name="colour">red</attribute></polygon>
    <polygon label="dog" group_id="3" points="17,1;18,1;18,3;17,3">
      <attribute name="Expression">both</attribute>
    </polygon>
    <polyline label="edge" points="1,1;2,2"></polyline>
    <tag label="indoor"></tag>
  </image>
  <image id="1" name="b.jpg" subset="Validation" width="20" height="10">
    <polygon label="cup" points="0,0;1,0;1,1;0,1"></polygon>
  </image>
</annotations>
"""

EXAMPLE = Example(
    reader="cvat",
    files={"annotations.xml": XML},
    means={
        ("train", "a.jpg", "the cup"): area(1, 2, 5, 6),
        ("train", "a.jpg", "the left cup"): area(1, 2, 5, 6),
        ("train", "a.jpg", "door"): area(10, 0, 12, 10),
        ("train", "a.jpg", "cat"): area(3, 5, 6, 6) | area(2, 6, 5, 7),
        ("train", "a.jpg", "both"): area(14, 1, 16, 3) | area(17, 1, 18, 3),
        ("val", "b.jpg", "cup"): area(0, 0, 1, 1),
    },
    leaves_out=("left out 1 shapes that are not polygon, box, mask",),
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'rle="1,6,5"',
            'rle="1,6,6"',
            "image 'a.jpg' mask[2]: found run lengths with sum 13 and minimum 1, expected sum 12",
        ),
        ('left="2"', 'left="200"', "mask[2]: found a mask whose box is 4 x 3 pixels at 200, 5, expected a box inside"),
        ('points="1.00,2.00;', 'points="1.00;', "image 'a.jpg' polygon[0]: found the polygon"),
        ('xtl="10.0"', 'xtl="left"', "image 'a.jpg' box[1]: found 'left', expected a number"),
        ('xbr="12.0"', 'xbr="12.0" rotation="10.0"', "found a box with rotation 10.0, expected none"),
        ('width="20" height="10">', 'width="20">', "image 'a.jpg': found None, expected a whole number"),
        ("<image id", "<track></track><image id", "export the task as CVAT for images 1.1, not for video"),
        ("</polygon>", "", "cannot be read as XML"),
    ],
)
def test_xml_of_another_form_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"annotations.xml": XML.replace(old, new, 1)})

    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, "cvat")

    assert message in str(caught.value)
