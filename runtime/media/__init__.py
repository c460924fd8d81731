"""Media files, in the order of the data.

``frames`` samples frames of a video, ``sparse`` decodes only those and what they depend on (told by ``nal_units``),
``film`` cuts chosen ranges exactly, ``film_copy`` copies them without encoding
(``packets``, ``parameter_sets``, ``sound_copy``, ``mp3_reservoir``), ``ahead`` lets stages overlap;
``rational`` reads PyAV's numbers.
"""
