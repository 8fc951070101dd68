"""Generation by vLLM: engines in Ray actors of their own, shared by all env runners.

| module     | what                                                                                  |
|------------|---------------------------------------------------------------------------------------|
| `settings` | the keys of `generation: {engine: ...}`                                               |
| `client`   | the backend an env runner has: sends prompts, gets completions, asks again where an engine died |
| `group`    | the engines of a run: starts them, gives them weights, tells how often they died      |
| `keeper`   | where an engine that starts finds the weights of the present policy                   |
| `engine`   | one engine in its actor; the only module that needs vLLM                              |
| `site`     | on the path of engine processes                                                       |
"""
