"""Losses per token, in torch: policy, value, KL, entropy, imitation, and how they become one number.

A loss here maps columns [B, L] to a float32 column [B, L] that is exactly 0, with gradient exactly 0,
where `mask` is false, whatever stands there (padding may hold NaN). `reduce.reduce` turns a column
into a scalar with an explicit normaliser, so that gradients accumulated over micro-batches and summed
over learners equal those of the one large batch.

| file         | gives                                                              |
|--------------|--------------------------------------------------------------------|
| `logprobs`   | log-probs and entropy of chosen tokens from hidden states, chunked |
| `policy`     | the table of policy losses: `ppo_clip`, `gspo`, `cispo`, a file each |
| `value`      | clipped value loss                                                 |
| `kl`         | k1, k2, k3 against a reference                                     |
| `entropy`    | entropy from logits                                                |
| `imitation`  | negative log-likelihood                                            |
| `reduce`     | token_mean, sequence_mean_token_sum, sequence_mean_token_mean, fixed |
"""
