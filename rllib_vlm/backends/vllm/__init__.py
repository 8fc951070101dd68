"""Generation by vLLM: engines in Ray actors of their own, shared by all env runners.

| module     | what                                                                                            |
|------------|-------------------------------------------------------------------------------------------------|
| `settings` | the keys of `generation: {engine: ...}`                                                         |
| `client`   | the backend an env runner has: sends prompts, gets completions, asks again where an engine died |
| `messages` | what travels between the processes                                                              |
| `group`    | the engines of a run: starts them, gives them weights, tells how often they died                |
| `keeper`   | where an engine that starts finds the weights of the present policy                             |
| `export`   | a learner's model as engines are given it                                                       |
| `engine`   | one engine in its actor                                                                         |
| `model`    | vLLM itself, in that actor                                                                      |
| `bans`     | tokens that are never sampled, as a logits processor of vLLM's                                  |
| `transfer` | weights past files, on GPUs                                                                     |
| `site`     | on the path of engine processes                                                                 |
"""
