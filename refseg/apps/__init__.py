"""What a person looks at or takes away, each behind a command; here in the order of the data flow.

`quickstart.py` runs the commands of the steps that `quickstart_steps.py` lists with their estimated times.
`browse.py` writes a page of a dataset: `browse_pictures.py` makes its pictures, `browse_predictions.py` reads the masks
that a run predicted, `browse_files.py` writes its files.
`doctor.py` diagnoses from the times of `stage_times.py` whether this machine feeds a model; `environment.py` describes
the machine.
`trained_model.py` is a trained model as an object; `predict.py` segments a picture; `picture_files.py` finds the
pictures that a user names, and `predict_files.py` writes the results. `demo_run.py` serves the application of `demo.py`
with `demo_server.py`: `demo_guard.py` admits requests, `demo_pictures.py` keeps uploads, `demo_answers.py` answers
questions about them, `demo_examples.py` has the examples.
`cost_table.py` counts what models cost. `options.py` says what `quickstart`, `models`, `predict` and
`demo` are asked.
`export_model.py` and `publish.py` prepare a model for other programs.
"""
