"""Applications: what a command shows to a person or writes for other programs.

The modules, in the order in which data passes through them:

    options              the arguments of `quickstart`, `models`, `predict` and `demo`
    quickstart_steps     the steps of the quickstart with their estimated times
    quickstart           runs these steps
    environment          describes the machine and the installation
    stage_times          measures each stage of a sample between shard and model
    doctor               finds the bottleneck of reading in these times
    browse               writes a page of a dataset
    browse_pictures      reduces its pictures
    browse_predictions   reads the masks that a run predicted for it
    browse_files         writes its files
    cost_table           counts the parameters and operations of models
    evaluate_checkpoint  scores a checkpoint
    report_runs          writes the report of a run, or of several
    predict              segments a picture
    picture_files        finds the pictures that a user names
    predict_files        writes masks, overlays and heat maps
    trained_model        a trained model as an object
    demo_run             loads a model and serves the demo
    demo_server          limits the connections of the demo
    demo_guard           checks requests
    demo_pictures        keeps uploaded pictures
    demo_likeness        compares them with the pictures of the model's validation set
    demo_answers         answers expressions
    demo_validation      reads examples of the model's validation set
    demo_examples        reads the bundled examples
    demo                 the application with its pages
    export_model         exports a model as programs
    publish              writes a model as a folder for the Hugging Face Hub
"""
