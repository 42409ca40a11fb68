"""What a word that is not valid may have meant: one function for flags, keys, choices and names of models."""

import difflib
from collections.abc import Iterable

_CLOSE = 0.8  # of difflib's ratio: a letter or two; a wrong guess is worse than none

# What other tools (timm, torchvision, mmpretrain, ultralytics, Keras) call it → what may be meant here, best first.
_ELSEWHERE = {
    "lr": "learning_rate base_lr lr0 blr init_lr",
    "epoch_size": "epochs num_epochs max_epochs n_epochs nb_epochs train_epochs epoch",
    "batch_size": "batch bs batch_size_per_gpu train_batch_size per_gpu_batch_size samples_per_gpu",
    "device_target": "device gpu gpus gpu_id gpu_ids cuda accelerator npu device_id",
    "distribute": "distributed world_size local_rank launcher nproc_per_node",
    "num_parallel_workers": "workers num_workers n_workers j dataloader_num_workers",
    "data_dir": "data data_path data_root root dataset_dir dataset_path imagenet train_dir data_url",
    "ckpt_save_dir": "output output_dir out_dir save_dir work_dir project logdir log_dir train_url",
    "output": "output_dir out_dir save_dir out work_dir output_path o",
    "ckpt_path": "checkpoint checkpoint_path initial_checkpoint ckpt weights pretrained_weights weight load_from "
    "load_path model_path finetune pretrained_path checkpoint_file",
    "resume": "resume_from auto_resume resume_checkpoint resume_path resume_from_checkpoint continue",
    "ckpt_save_interval": "save_freq save_period save_interval checkpoint_interval save_epoch_freq save_every",
    "image_resize": "img_size imgsz image_size input_size size crop_size train_crop_size resize",
    "img_size": "imgsz image_size input_size image_resize size",
    "crop_pct": "crop_ratio test_crop_ratio",
    "num_classes": "num_class nb_classes n_classes classes nc",
    "in_channels": "in_chans channels",
    "model": "arch model_name backbone net architecture",
    "opt": "optimizer optim opt_name",
    "scheduler": "sched lr_scheduler lr_policy lr_schedule cos_lr",
    "weight_decay": "wd weight_decay_rate l2",
    "clip_value": "clip_grad_norm grad_clip max_norm max_grad_norm clip_norm",
    "gradient_accumulation_steps": "accum_iter grad_accum_steps accumulate update_freq accumulation_steps "
    "gradient_accumulation accumulate_grad_batches",
    "log_interval": "print_freq log_freq log_every log_every_n_steps log_steps",
    "val_interval": "eval_interval val_freq eval_freq check_val_every_n_epoch",
    "drop_rate": "drop dropout dropout_rate",
    "drop_path_rate": "drop_path stochastic_depth stochastic_depth_prob",
    "label_smoothing": "smoothing label_smooth",
    "auto_augment": "aa autoaugment rand_augment",
    "re_prob": "reprob random_erase random_erasing erasing",
    "color_jitter": "jitter colour_jitter",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "switch_prob": "mixup_switch_prob",
    "ema": "model_ema use_ema",
    "ema_decay": "model_ema_decay",
    "use_nesterov": "nesterov",
    "sync_bn": "sync_batchnorm syncbn use_syncbn",
    "amp_level": "amp fp16 half precision use_amp mixed_precision",
    "export_weights": "fp16 half precision",
    "distill": "distillation_type distillation kd",
    "teacher": "teacher_model",
    "teacher_ckpt": "teacher_path teacher_checkpoint",
    "seed": "random_seed manual_seed",
    "labels": "class_names names classes label_file class_file",
    "file_format": "format file_type include export_format",
    "opset": "opset_version",
    "export_head": "output_head",
    "top_k": "topk k",
    "cosine_decay": "cosine cosine_annealing cos",
    "step_decay": "step",
    "multi_step_decay": "multistep multi_step",
    "exponential_decay": "exponential",
    "Ascend": "npu ascend910 ascend310",
    "CE": "cross_entropy crossentropy ce_loss softmax",
    "MINDIR": "mind_ir ms",
}


def suggestion(word: str, choices: Iterable[str], quoted: bool = False) -> str:
    """The end of a message about a word that is none of ``choices``: "; the nearest is …" where one is spelt almost
    like it, "; here it is …" where other tools have this word for it, and nothing where it would be a guess."""
    by_plain = {_plain(choice): choice for choice in reversed(list(choices))}
    plain = _plain(word)
    close = difflib.get_close_matches(plain, by_plain, n=1, cutoff=_CLOSE)
    meant = [ours for ours, theirs in _ELSEWHERE.items() if plain in theirs.split() and _plain(ours) in by_plain]
    if meant and plain not in by_plain:
        words, choice = "here it is", by_plain[_plain(meant[0])]
    elif close:
        words, choice = "the nearest is", by_plain[close[0]]
    else:
        return ""
    return f"; {words} {choice!r}" if quoted else f"; {words} {choice}"


def _plain(word: str) -> str:
    return word[:80].lower().lstrip("-").replace("-", "_")
