"""Experiments as data: what is asked (`config`), what was found (`measure`, `records`), and what follows from it.

`choose` picks a setting from validation questions under a constraint, `frontier` compares knobs at equal task accuracy,
`intervals` and `summary` turn the records of many pairs into rows of a table. Nothing here loads a model.
"""
