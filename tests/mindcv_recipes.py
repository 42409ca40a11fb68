"""MindCV's recipes of the four Visformers, as it publishes them."""

# MindCV's four recipes, key by key; what differs between the variants is filled in.
RECIPE = """\
# system
mode: 0
distribute: True
num_parallel_workers: 8
val_while_train: True

# dataset
dataset: 'imagenet'
data_dir: '/path/to/imagenet'
shuffle: True
dataset_download: False
batch_size: {batch_size}
drop_remainder: True

# augmentation
interpolation: 'bicubic'
re_prob: 0.25
mixup: 0.8
cutmix: 1.0
cutmix_prob: 1.0
auto_augment: autoaug

# model
model: '{model}'
num_classes: 1000
pretrained: False
ckpt_path: ''
keep_checkpoint_max: 10
ckpt_save_dir: './ckpt'
epoch_size: {epoch_size}
dataset_sink_mode: True
amp_level: 'O3'

# loss
loss: 'CE'
label_smoothing: 0.1

# lr scheduler
scheduler: 'cosine_decay'
lr_epoch_stair: True
lr: {lr}
min_lr: {min_lr}
warmup_factor: 0.002
warmup_epochs: 5
decay_epochs: 295

# optimizer
opt: 'adamw'
momentum: 0.9
weight_decay: 0.05
loss_scale: 1024
"""
VARIANTS = {
    "visformer_tiny": (128, 300, "0.0005", "0.00001"),
    "visformer_tiny_v2": (256, 400, "0.001", "0.00002"),
    "visformer_small": (64, 300, "0.0005", "0.00001"),
    "visformer_small_v2": (64, 300, "0.0005", "0.00001"),
}


def recipe(model: str) -> str:
    batch_size, epoch_size, lr, min_lr = VARIANTS[model]
    return RECIPE.format(model=model, batch_size=batch_size, epoch_size=epoch_size, lr=lr, min_lr=min_lr)
