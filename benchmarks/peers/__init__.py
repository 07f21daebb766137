"""pocketlm and other engines on this machine, in turn, on one checkpoint: `make bench-peers`.

Each engine is a module here, with some of the same names:

    VARIANTS        the ways in which it is measured: name -> Variant
    load(home, checkpoint, variant)         the engine, ready: a Generate. In a child process, by the Python
                                            of its virtual environment
    serve(home, checkpoint, variant, port)  the command of its HTTP server, for the variants that are served
    request(prompt, num_new_tokens)         the path and body of a request to it, where they are not OpenAI's
    PACKAGES        what is installed into its virtual environment, home/venv; pocketlm has ours
    build(home, checkpoint)                 after that, once: compile, convert. Not in the child
    ENVIRONMENT     variables of its processes

What only its virtual environment has is imported inside `load`.
"""
