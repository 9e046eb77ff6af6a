"""Training turns a recipe and a dataset into a run's folder with checkpoints.

The modules, in the order in which a run passes through them:

    trainer            runs the training loop and calls all other modules
    launch             starts processes, chooses device and threads, and warns about a missing GPU
    run_folder         checks that the output folder may be used, and locks it for one run at a time
    resume             finds the checkpoint to resume from, and checks that it belongs to the same run
    setup              builds model and loader from the recipe, and refuses missing splits and start weights
    start_weights      reads the weights of another run to start from
    step               takes one step: splits the batch, computes gradients, updates and averages the weights
    losses             computes the training loss, and the target of LTS's position prior
    optim              groups the parameters, and computes the learning rate of a step
    run_log            averages the values of several steps, and writes them to the log and to trackers
    run_files          writes and reads `metrics.jsonl`, `recipe.json` and `environment.json`
    validation         decides when to validate, computes the scores, and ends a run without improvement
    stopping           ends a run that diverged, was stopped by SIGTERM, or lost another process
    checkpoint         finds, checks and reads checkpoints
    checkpoint_state   defines the content of a checkpoint's `state.json`
    checkpoint_writer  writes and removes checkpoints
"""
