"""What is said of a parameter that a method adds."""

from llmscale.model.declaration import ParameterDeclaration
from llmscale.model.regions import Box, Region


def added_declaration(
    local_name: str, shape: tuple[int, ...], regions: tuple[Region, ...], tensor_replicated: bool
) -> ParameterDeclaration:
    """Of a parameter that no other stage has."""
    return ParameterDeclaration(
        local_name=local_name,
        shape=shape,
        regions=regions,
        tensor_replicated=tensor_replicated,
        pipeline_replica=False,
        tied=False,
    )


def whole_declaration(local_name: str, name: str, shape: tuple[int, ...]) -> ParameterDeclaration:
    """Of a parameter that every tensor rank holds whole, stored as `name`."""
    whole = Box((0,) * len(shape), shape)
    return added_declaration(local_name, shape, (Region(name, shape, whole, whole),), True)
