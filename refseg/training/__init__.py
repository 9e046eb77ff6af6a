"""Training: a recipe and a dataset to a run's folder with checkpoints.

In the order in which a run passes through them:

    trainer            the loop; calls all others
    launch             processes, device, threads; warnings about a GPU that is missing
    run_folder         whether a folder may be written into; one process at a time trains into it
    resume             from which checkpoint a run resumes, and whether it is the same run
    setup              model and loader from the recipe; splits and start weights that do not exist are refused
    start_weights      weights of another run to start from
    step               one step: parts of a batch, forward pass, gradients, the average of the weights
    losses             the training loss, and the target of LTS's position prior
    optim              parameter groups, and the learning rate as a function of the step
    run_log run_files  means of a window of steps, `metrics.jsonl`, trackers; the files beside the checkpoints
    validation         when it is due, how it scores, when patience ends the run
    stopping           divergence, SIGTERM, another process that ended
    checkpoint checkpoint_state checkpoint_writer    how a checkpoint is read, what it holds, how it is written
"""
