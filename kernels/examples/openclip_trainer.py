"""OpenCLIP's own trainer with the losses of fastclip_kernels. Its flags are the trainer's:

python openclip_trainer.py --model ViT-B-32 --train-data 'shards/{0000..0099}.tar' ...
torchrun --nproc-per-node 8 -- openclip_trainer.py --model ViT-B-32 --local-loss \
    --gather-with-grad --precision amp_bf16 --train-data 'shards/{0000..0099}.tar' ...

Needs open_clip_torch 3.3.0 and its extra `training`. Across ranks it needs GPUs, as that trainer
does. Without `--`, torchrun takes the trainer's `--logs` for an option of its own.
"""

import sys

from open_clip_train.main import main

from fastclip_kernels import patch_open_clip

if __name__ == "__main__":
    patch_open_clip()  # the one line
    main(sys.argv[1:])
