"""A run, or several, as one HTML file that a browser opens from disk.

`collect` reads what runs have left, `curves` their logs, `thumbnails` makes small pictures, `content` turns all of it
into the page's data, `page` puts those into the template. Everything that is drawn is drawn by the page's own script.
"""
