"""Evaluation compares predicted masks with the targets of a split, computes scores and writes reports.

The modules, in the order in which data passes through them:

    options        the arguments of an evaluation, of scored masks and of a report
    protocols      the rules by which masks are made, compared and scored
    leak_check     finds images of the split that a model was trained on
    evaluate       runs a model over a split and counts pixels
    inference      turns mask logits into binary masks
    ground_truth   draws the target masks
    partial        saves the counts of an unfinished evaluation, so that it can resume
    predictions    reads predicted masks of other projects
    score_masks    counts the pixels of such masks
    rows           defines the table of pixel counts, which has one row per sentence
    metrics        defines scores as ratios of sums over sentences
    no_target      defines the scores for sentences that refer to nothing in their image
    scores         computes all scores of a table by one protocol
    bootstrap      computes confidence intervals of scores and of differences between runs
    breakdown      computes scores by groups of sentences
    origin         records what was scored
    results        writes and reads rows and scores
    explanation    computes what a model attended to
    overlay        draws the outline of a mask over a picture
    outlines       traces the outline of a mask as a path for a page
    heat_maps      draws attention maps over a picture
    examples       chooses examples for a report, with their pictures and the outlines of their masks
    compared_examples  chooses examples for the comparison of two runs
    curves         lays out curves over training steps
    report         builds the report of a run
    comparison     builds the comparison of several runs
    pages          renders reports as HTML and Markdown

The templates contain what all pages share, those of `refseg.apps` included: `look.css`, `viewer.js`, `parts.html.j2`.
"""
