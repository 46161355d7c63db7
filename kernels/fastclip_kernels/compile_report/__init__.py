"""What the kernels compile to, and how long that should take: with no GPU, on any Linux machine.

python -m fastclip_kernels.compile_report --arch sm_80 --arch sm_90 [--all] [--json]
"""
