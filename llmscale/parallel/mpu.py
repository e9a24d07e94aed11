"""What DeepSpeed asks a model-parallel unit: groups, ranks and sizes, answered from a World.

Its data-parallel group is data × context, because context ranks hold replicas too; its model-parallel
group is tensor × pipeline.
"""

from torch.distributed import ProcessGroup

from llmscale.parallel.world import World


class ModelParallelUnit:
    def __init__(self, world: World) -> None:
        self._world = world

    def get_data_parallel_group(self) -> ProcessGroup:
        return self._world.data_group

    def get_data_parallel_rank(self) -> int:
        return self._world.data_group.rank()

    def get_data_parallel_world_size(self) -> int:
        return self._world.data_group.size()

    def get_model_parallel_group(self) -> ProcessGroup:
        return self._world.model_group

    def get_model_parallel_rank(self) -> int:
        return self._world.model_group.rank()

    def get_model_parallel_world_size(self) -> int:
        return self._world.model_group.size()

    def get_tensor_model_parallel_group(self) -> ProcessGroup:
        return self._world.tensor_group

    def get_tensor_model_parallel_rank(self) -> int:
        return self._world.tensor_group.rank()

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._world.tensor_group.size()

    def get_pipeline_model_parallel_group(self) -> ProcessGroup:
        return self._world.pipeline_group

    def get_pipeline_model_parallel_rank(self) -> int:
        return self._world.pipeline_group.rank()

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._world.pipeline_group.size()
