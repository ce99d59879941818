"""A trained run as one HTML file, in which the model itself runs: `gptjax page`.

web/ holds the page's programs: plain JavaScript modules that mirror the Python ones by name.
"""
