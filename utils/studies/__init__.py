"""Studies: variants trained at one budget, asked the same questions, and compared on one page.

`experiment` is the file, `training_rows` what each variant is trained on, `plan` the commands, `carrying_out` runs
them, `findings` reads what came out, `tables` words it, `pages` and `pictures` show it. Nothing here knows how a model
is trained or asked: both are commands that a person could give, and the report names each.
"""
