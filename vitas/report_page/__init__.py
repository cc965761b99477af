"""The page that shows a run: `report.html`, and its figures as PNG and SVG.

read.py takes what there is from a run's folder, and stage_logs.py from its logs; of_*.py make Vega-Lite specifications
of it (figure.py has what these share), page.py and stages.py the page, write.py the files. refresh.py has a stage's end
write it anew.
"""
