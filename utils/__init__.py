"""What knows no model.

arithmetic  exact integers: layers of networks, polyphase bands, colours
data        image files and data sets
show        figures, sheets, measures of quality, other codecs
options     options of scripts and one-line errors
interrupt   Ctrl-C while a script is still importing
files       files that are either whole or absent
workers     the processes of a run, and what stops them
box         where the models and photographs in the box are
"""

__version__ = "1.0.0"
