"""worldmodel: a Transfusion mixture-of-experts world model, steered with keys and sentences.

This package is the model and the words that all parts share. The other folders of the
repository are installed below it: `worldmodel.envs`, `worldmodel.datasets`,
`worldmodel.evaluate`, `worldmodel.train`, `worldmodel.viewer`.
"""

__version__ = "0.1.0"
