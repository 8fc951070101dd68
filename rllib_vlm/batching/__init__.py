"""From trajectories to batches: rows, packing into [B, L], sharding by whole groups, micro-batches.

    trajectories --sharding.shard_groups--> one learner's trajectories
                 --rows.rows_from_trajectory--> rows
                 --packing.pack, pad_batch--> {column: [B, ...]}, B equal on every learner
                 --micro.micro_batches--> pieces that fit in memory

Every array of a batch is row-major, [B, ...], because RLlib slices minibatches along dimension 0.
"""
