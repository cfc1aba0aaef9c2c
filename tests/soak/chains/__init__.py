"""Random chains of commands on random checkpoints, held to float64 arithmetic on whole tensors.

What a command writes is read back and compared by code that shares nothing with what is tested: files are parsed by
their formats' descriptions, slices are cut by the definition, sums are numpy's in float64.

    oracle      what a tensor must be after a step, and how far rounding may have led it away
    files       checkpoint files, read and written
    layouts     random ways to cut tensors over ranks, and slices put together
    storing     whole checkpoints in every format and layout
    networks    random networks
    adapters    random adapters of them, in every spelling
    methods     what several updates of a layer become by each method of combination
    forms       adapters as other libraries read them
    running     a command in this process, in its own, or killed and run again
    steps       one module a command: what it is given, and what has to come out
    wrong       inputs that have to be refused; unfit: adapters
    chain       steps one after the other, from one seed
"""
