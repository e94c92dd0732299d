"""Reads comments out of a descriptor image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

# Field numbers in FileDescriptorProto and its parts, of which comment paths are made.
_ENUM, _SERVICE, _ENUM_VALUE, _METHOD = 5, 6, 2, 2


def files(image: Path) -> Iterator[FileDescriptorProto]:
    """The files of the product, sorted as in the image."""
    descriptors = FileDescriptorSet.FromString(image.read_bytes())
    return (file for file in descriptors.file if file.package.startswith("conveyor."))


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(location.path): "\n".join(
            line.removeprefix(" ") for line in location.leading_comments.rstrip("\n").split("\n")
        )
        for location in file.source_code_info.location
        if location.leading_comments
    }


def service_comments(file: FileDescriptorProto) -> Iterator[tuple[int, str, list[str]]]:
    """Index, comment and comments of the methods, for each service of a file."""
    comments = _comments(file)
    for i, service in enumerate(file.service):
        methods = [comments[_SERVICE, i, _METHOD, j] for j in range(len(service.method))]
        yield i, comments[_SERVICE, i], methods


def enum_comments(file: FileDescriptorProto, name: str) -> tuple[str, dict[str, str]]:
    """Comment of an enum and of each of its values."""
    comments = _comments(file)
    i = next(i for i, enum in enumerate(file.enum_type) if enum.name == name)
    values = file.enum_type[i].value
    return comments[_ENUM, i], {
        value.name: comments[_ENUM, i, _ENUM_VALUE, j] for j, value in enumerate(values)
    }
