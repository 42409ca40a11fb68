"""Faults that a test must notice: one at a time is planted by plant.py."""

from typing import NamedTuple


class Room(NamedTuple):
    """A file, the tests that guard it, and faults by name: what stands there once, and what to put in its place."""

    path: str  # from the root of the repository
    tests: str
    faults: dict[str, tuple[str, str]]


ROOMS = (
    Room(
        "mindcv_reparam/fusion.py",
        "tests/test_fusion.py",
        {
            "norm: eps left out": ("np.asarray(variance, np.float64) + eps)", "variance)"),
            "norm: sign of the mean": ("np.float64) - np.asarray(mean", "np.float64) + np.asarray(mean"),
            "compose: outer shift lost": ("inner.shift + outer.shift)", "inner.shift)"),
            "after: shift lost": ("linear.bias + affine.shift)", "linear.bias)"),
            "after: bias not scaled": ("affine.scale * linear.bias", "linear.bias"),
            "before: sign of the shift": ("linear.bias + (matrix", "linear.bias - (matrix"),
            "before: channels of other groups": (
                "np.repeat(affine.shift.reshape(groups, in_per_group), out_per_group, axis=0)",
                "np.tile(affine.shift.reshape(groups, in_per_group), (out_per_group, 1))",
            ),
            "pad: off centre": ("(rows, rows), (columns, columns)", "(0, 2 * rows), (columns, columns)"),
            "identity: wrong channel": ("outputs % (channels // groups),", "outputs % groups,"),
            "parallel: kernels transposed": ("sum((branch.weight for", "sum((branch.weight.swapaxes(2, 3) for"),
            "parallel: one bias": ("sum((branch.bias for branch in padded), zero)", "padded[0].bias"),
        },
    ),
    Room(
        "mindcv_reparam/layers.py",
        "tests/test_layers.py",
        {
            "another eps": ("variance, cell.eps)", "variance, 1e-6)"),
            "bias overlooked": ("cell.bias.asnumpy() if cell.has_bias else None", "None"),
            "before: groups ignored": (
                "fusion.affine_before(linear_of(layer), affine_of(norm), groups)",
                "fusion.affine_before(linear_of(layer), affine_of(norm))",
            ),
            "bias lost on the move": ("with_linear(second, moved)", "with_linear(second, linear_of(second))"),
            "attention: q's bias not scaled": ("qkv.bias[q] * scale", "qkv.bias[q]"),
            "attention: v scaled instead of q": ("weight[q] *= scale", "weight[v] *= scale"),
            "attention: scale twice": ("scale=nn.Identity(),", "scale=self.scale,"),
            "attention: bias of v lost": ("fusion.affine_before(proj, value_bias)", "proj"),
        },
    ),
    Room(
        "mindcv_reparam/reparam.py",
        # the protocol is the same for every family: one will do
        "tests/test_reparam.py -m 'not slow' -k 'not (visformer or riformer or poolformer or gfnet or regnet)'",
        {
            "in place": ("tree.replace(tree.copy_of(net), fuse)", "tree.replace(net, fuse)"),
            "root left out": (
                "finished(tree.replace(tree.copy_of(net), fuse))",
                "finished(net if fuse(net) else tree.replace(tree.copy_of(net), fuse))",
            ),
            "training mode kept": (").set_train(False)", ")"),
            "rounds after every fold": ("Tensor(value, ms.float64)", "Tensor(value, ms.float32)"),
        },
    ),
    Room(
        "mindcv_reparam/tree.py",
        "tests/test_tree.py tests/test_reparam.py -m 'not slow' -k 'test_tree or graphs'",
        {
            "stale list of cells": (
                "private.set_run(parent, list(children(parent).values()))",
                "pass",
            ),
            "a Cell at two places": ("    if cell in done:\n        return done[cell]\n", ""),
            "parents first": (
                "for name, child in children(cell).items():",
                "for name, child in children(rule(cell) or cell).items():",
            ),
            "places named once": ("private.children(cell).items() if child is not None", "cell.name_cells().items()"),
            "evaluation mode": ("new.set_train(cell.training)", "new"),
            "precision lost": ("new.add_flags(**cell.get_flags())", "pass"),
            "names lost": ("    for parameter, name in names:\n        parameter.name = name\n", ""),
            "new names wrong": (
                "    for name, parameter in net.parameters_and_names():\n        parameter.name = name\n",
                "",
            ),
            "graphs of the original lost": ("private.forget_graphs(child)", "pass"),
        },
    ),
    Room(
        "mindcv_reparam/stochastic.py",
        "tests/test_stochastic.py -m 'not slow'",
        {
            "constant of a map's size": ("min(cuts, key=sum)", "max(cuts, key=sum)"),
            "corners depend": (
                "self.kept(_mul(_xor(bits, _and(_right_shift(bits, _15), _LOW17)), _MIX2))",
                "self.kept(bits)",
            ),
        },
    ),
    Room(
        "mindcv_reparam/tasks/classification/device.py",
        "tests/test_training_bytes.py -m 'not slow'",
        {
            "mixed before erased": (
                "        if self.erasing is not None:\n"
                "            images = self.erasing(images, targets[1], targets[2])\n"
                "        if self.mixing is not None:\n"
                "            images = self.mixing(images, targets[self.place_of_mix])\n",
                "        if self.mixing is not None:\n"
                "            images = self.mixing(images, targets[self.place_of_mix])\n"
                "        if self.erasing is not None:\n"
                "            images = self.erasing(images, targets[1], targets[2])\n",
            ),
            "share lost": ("(others - images) * mix[0]", "(others - images) * 0.5"),
            "blended by another formula": (
                "images + (others - images) * mix[0]",
                "images * (1.0 - mix[0]) + others * mix[0]",
            ),
            "swap lost": ("others, mixed)", "mixed, mixed)"),
            "box a column wider": ("self.columns < right", "self.columns <= right"),
            "one noise for all images": ("keys.reshape(-1, 1, 1, 1)", "keys[:1].reshape(-1, 1, 1, 1)"),
            "sign of shifted bits kept": ("2 ** (32 - by) - 1", "2**32 - 1"),
        },
    ),
    Room(
        "mindcv_reparam/data/erasing.py",
        "tests/test_data_transforms.py -k 'noise or erasing'",
        {
            "noise: a round left out": ("    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(MIX1)\n", ""),
            "noise: key lost": ("places ^ key.astype(np.uint32)", "places ^ np.uint32(0)"),
            "noise: another deviation": ("[NormalDist().inv_cdf(", "[NormalDist(0, 1.1).inv_cdf("),
            "noise: one row for all": (
                "np.arange(math.prod(shape), dtype=np.uint32)",
                "np.arange(math.prod(shape), dtype=np.uint32) % np.uint32(shape[-1])",
            ),
        },
    ),
    Room(
        "mindcv_reparam/training/statistics.py",
        "tests/test_tree.py -k 'synchronised and not slow'",
        {
            "frozen norms thaw": ("use_batch_statistics=norm.use_batch_statistics", "use_batch_statistics=None"),
            "statistics lost": ('(*_LEAVES, "gamma", "beta")', '("gamma", "beta")'),
        },
    ),
    Room(
        "mindcv_reparam/models/mobileone.py",
        "tests/test_fastvit.py -k cells_fuse",
        {
            "MobileOne: identity lost": (
                "affine_of(self.identity), identity)",
                "fusion.affine(0 * identity.bias), identity)",
            ),
            "MobileOne: scale branch lost": ("branches.append(linear_of(fused(self.scale)))", "pass"),
            "large kernel: small one lost": (
                "fusion.parallel(linear_of(large), linear_of(small))",
                "linear_of(large)",
            ),
        },
    ),
    Room(
        "mindcv_reparam/models/fastvit.py",
        "tests/test_fastvit.py -k cells_fuse",
        {
            "RepMixer: sign of the norm": ("fusion.Affine(-norm.scale, -norm.shift)", "norm"),
            "RepMixer: residual lost": ("fusion.parallel(identity, branch)", "branch"),
            "RepMixer: layer scale lost": (
                "affine_of(self.layer_scale), fusion",
                "fusion.affine(0 * norm.shift + 1), fusion",
            ),
            "position: residual lost": (
                "fusion.parallel(fusion.identity(len(conv.bias), groups=len(conv.bias)), conv)",
                "conv",
            ),
            "attention block: layer scales mixed up": (
                "(mixer.proj, self.layer_scale_1)",
                "(mixer.proj, self.layer_scale_2)",
            ),
        },
    ),
    Room(
        "mindcv_reparam/models/visformer.py",
        "tests/test_reparam.py -k 'visformer and outputs_are_equal'",
        {"last norm lost": ("head=fold_before(self.norm, self.head)", "head=self.head")},
    ),
    Room(
        "mindcv_reparam/models/riformer.py",
        "tests/test_reparam.py -k 'riformer and outputs_are_equal'",
        {"minus one lost": ("fusion.affine(weight - 1.0, bias)", "fusion.affine(weight, bias)")},
    ),
    Room(
        "mindcv_reparam/models/metaformer.py",
        "tests/test_reparam.py -k 'poolformer and outputs_are_equal'",
        {"layer scale lost": ("fold_after(self.mlp.fc2, self.layer_scale2)", "self.mlp.fc2")},
    ),
    Room(
        "mindcv_reparam/models/gfnet.py",
        "tests/test_reparam.py -k 'gfnet and outputs_are_equal'",
        {"layer scale lost": ("with_linear(self.mlp.fc2, scaled)", "self.mlp.fc2")},
    ),
    Room(
        "mindcv_reparam/training/trainer.py",
        "tests/test_training_trainer.py",
        {
            "skips of a whole run counted": (
                "            return\n        self._skipped_in_a_row = 0\n",
                "            return\n",
            ),
            "an interval's img/s of one rank": (
                'record |= {"img_per_s": images * self.ranks.size / seconds, "data_wait": waited / seconds}\n            left',  # noqa: E501
                'record |= {"img_per_s": images / seconds, "data_wait": waited / seconds}\n            left',
            ),
            "an epoch's img/s of one rank": (
                'record |= {"img_per_s": count * self.ranks.size / seconds, "data_wait": waited / seconds}\n        return',  # noqa: E501
                'record |= {"img_per_s": count / seconds, "data_wait": waited / seconds}\n        return',
            ),
            "the average's statistics of one rank": (
                "average_statistics(self.step.get_parameters(), self.ranks)",
                "average_statistics(self.step.network.get_parameters(), self.ranks)",
            ),
        },
    ),
    Room(
        "mindcv_reparam/runtime.py",
        "tests/test_runtime.py",
        {"every rank on device 0": ('launch.local_rank if target == "Ascend" else 0', "0")},
    ),
    Room(
        "mindcv_reparam/data/loader.py",
        "tests/test_data_loader.py -k ahead",
        {"nothing made ahead": ("len(self._ahead) <= self._workers.count and", "False and")},
    ),
    Room(
        "mindcv_reparam/data/batches.py",
        "tests/test_data_loader.py -k own_label",
        {
            "the label of what could not be read": (
                "    replacement = None\n    for _ in range(_REPLACEMENTS):\n"
                "        try:\n            return source.pixels(index), source.target(index)",
                "    replacement, asked = None, index\n    for _ in range(_REPLACEMENTS):\n"
                "        try:\n            return source.pixels(index), source.target(asked)",
            ),
        },
    ),
    Room(
        "mindcv_reparam/training/loss_scale.py",
        "tests/test_training_step.py -k scale",
        {
            "window of 20": ("window: int = 2000", "window: int = 20"),
            "no maximum": ("ops.minimum(self.value * 2.0, self.MAXIMUM)", "self.value * 2.0"),
            "below one": ("ops.maximum(self.value * 0.5, 1.0)", "self.value * 0.5"),
        },
    ),
    Room(
        "mindcv_reparam/training/assembly.py",
        "tests/test_training_assembly.py",
        {
            "no layer decay": ("        layer_decay=config.layer_decay,\n", ""),
            "no nesterov": ("        nesterov=config.use_nesterov,\n", ""),
            "no eps": ("        eps=config.eps,\n", ""),
            "messages of any size": ("        allreduce_mb=config.allreduce_mb,\n", ""),
            "no clip value": ("clip_norm=config.clip_value if config.clip_grad else None", "clip_norm=None"),
            "no warm-up of the average": (
                "WeightAverage(network, config.ema_decay, config.ema_warmup)",
                "WeightAverage(network, config.ema_decay)",
            ),
            "state of another interval": ("save_interval=config.ckpt_save_interval", "save_interval=1"),
        },
    ),
    Room(
        "mindcv_reparam/training/ema.py",
        "tests/test_training_step.py -k average",
        {
            "warm-up counted from 0": ("(1.0 if moves is None", "(0.0 if moves is None"),
        },
    ),
    Room(
        "mindcv_reparam/data/sampler.py",
        "tests/test_data_sampler.py",
        {
            "every epoch in one order": (
                "Purpose.ORDER, epoch).permutation(length)",
                "Purpose.ORDER, 0).permutation(length)",
            ),
            "padding counts": ("valid = positions < self.epoch_length", "valid = positions >= 0"),
            "repeats ignored": ("% self.epoch_length // self.repeats", "% self.epoch_length"),
        },
    ),
    Room(
        "mindcv_reparam/watch.py",
        "tests/test_watch.py -m 'not slow'",
        {
            "a stopped process accuses": ("stayed = now - max(place.since, self._awake)", "stayed = now - place.since"),
            "silence overlooked where one compiles": (
                "(stayed < alone and max(quiet.values(), default=0.0) < seconds)",
                "stayed < alone",
            ),
            "messages of strangers": ("if not content.startswith(self._token):", "if False:"),
        },
    ),
    Room(
        "mindcv_reparam/hosts.py",
        "tests/test_host_checks.py -k 'not guarded and not worker_notices'",
        {
            "another program taken for msrun": ('if "msrun" not in names:', "if False:"),
            "two hosts of one name": ("hosts.count(host) > count", "hosts.count(host) < count"),
            "127.0.1.1 on a single host": ('(several or host != "127.0.0.1")', "several"),
            "loopback between hosts": ("and len({*hosts}) > 1", "and False"),
        },
    ),
    Room(
        "mindcv_reparam/guardian.py",
        "tests/test_host_checks.py -k 'notices or connections_count'",
        {
            "a zombie lives": ('!= "Z"', '!= "X"'),
            "connections counted before there are any": ("if not self._joined or", "if"),
            "one that does not answer is borne": ("misses += 1", "misses += 0"),
        },
    ),
    Room(
        "mindcv_reparam/convert/facts.py",
        "tests/test_new_family.py -k 'convert or image_size or incomplete'",
        {
            "every classifier is called head": ('f"{classifier}.weight"', '"head.weight"'),
            "positions without their stride": ("[side * stride for", "[side for"),
        },
    ),
    Room(
        "mindcv_reparam/convert/__init__.py",
        "tests/test_new_family.py -k 'convert or image_size or incomplete'",
        {
            "only families that are there by chance": ("        import_family(family)\n", "        pass\n"),
            "what is only read is written": ("family and table.written]", "family and not table.written]"),
        },
    ),
    Room(
        "mindcv_reparam/checkpoint.py",
        "tests/test_new_family.py -k 'convert or image_size or incomplete'",
        {"nothing is resized": ('getattr(net, "resized", {})', "{}")},
    ),
    Room(
        "mindcv_reparam/network.py",
        "tests/test_detection_sets.py -k three",
        {
            "a row for a row's number": (
                "new[list(kept)] = old[list(kept.values())]",
                "new[list(kept)] = old[list(kept)]",
            ),
            "no row is kept": ("if kept and new.shape[1:]", "if not kept and new.shape[1:]"),
        },
    ),
    Room(
        "mindcv_reparam/features.py",
        "tests/test_new_family.py -k 'convert or image_size or incomplete'",
        {"feature_info may be missing": ('return ["feature_info"]', "return []")},
    ),
    Room(
        "mindcv_reparam/registry.py",
        "tests/test_new_family.py -k 'convert or image_size or incomplete'",
        {"arguments may be missing": ("arguments = _ARGUMENTS if", "arguments = () if")},
    ),
    Room(
        "mindcv_reparam/tasks/detection/batches.py",
        "tests/test_detection_data.py -k 'sizes_are_drawn or size_of_their_step'",
        {
            "a size for the whole epoch": ("Purpose.SCALE, epoch, step)", "Purpose.SCALE, epoch)"),
            "sizes to the end": ("if self.sides and epoch < self.strong_epochs:", "if self.sides:"),
            "boxes of another size": ("self.max_boxes, transform.size)", "self.max_boxes, self.transform.size)"),
        },
    ),
    Room(
        "mindcv_reparam/data/objects.py",
        "tests/test_detection_data.py -k held_out",
        {
            "no boxes": ("np.repeat(kept, self.counts)", "slice(0)"),
            "annotations of all images": ("split, self._listing.part(kept)", "split, self._listing"),
        },
    ),
    Room(
        "mindcv_reparam/fonts.py",
        "tests/test_fonts.py",
        {
            "boxes for characters": ("best = packages[lacking.index(least)]", 'best = ""'),
            "Chinese forms in Japanese": ("return _JAPANESE", "return _CHINESE"),
        },
    ),
    Room(
        "mindcv_reparam/training/records.py",
        "tests/test_detection_categories.py",
        {"ids of categories lost": ("category_ids=self.data.source.category_ids,", "")},
    ),
    Room(
        "mindcv_reparam/bundle/manifest.py",
        "tests/test_detection_categories.py",
        {"class indices for ids": ("return index if known is None else known", "return index")},
    ),
    Room(
        "mindcv_reparam/tasks/detection/heads.py",
        "tests/test_detection_export.py -k known_numbers",
        {
            "height before width": ("ops.concat((sizes, sizes), 1)", "ops.concat((sizes[:, ::-1], sizes[:, ::-1]), 1)"),
            "the query for the class": ("labels = places - rows * _tensor_of(classes)", "labels = rows"),
            "a whole side each way": ("reach = sides * self.half", "reach = sides"),
            "boxes beyond the image": ("ops.minimum(ops.maximum(corners, 0.0), limits)", "corners"),
        },
    ),
    Room(
        "mindcv_reparam/models/resnet_vd.py",
        "tests/test_detection_export.py -k published",
        {"the pool a pixel off": ("(1, 1), (1, 1))", "(2, 0), (2, 0))")},
    ),
    Room(
        "mindcv_reparam/export/onnx/selection.py",
        "tests/test_detection_export.py -k selections",
        {
            "rows of another image": ("writer.number(rows, dtype)])", "writer.number(rows - 1, dtype)])"),
            "rows of another image, one batch": ("np.arange(dims[0]) * rows", "np.arange(dims[0]) * dims[2]"),
            "every part from the start": ("0 if begin_mask >> axis & 1 else start", "0"),
            "pixels between others": ('nearest_mode="floor"', 'nearest_mode="ceil"'),
        },
    ),
    Room(
        "mindcv_reparam/votes.py",
        "tests/test_votes.py",
        {
            "nobody waits for the answers": ("self._changed.wait_for(lambda: self._last is not None)", "pass"),
            "one step too few": ("self._under_way = step + 1", "self._under_way = step"),
            "rank 0 left out": ("max(self._under_way, *self._answers.values())", "max(self._answers.values())"),
            "the first answer decides": ("len(self._answers) == len(self._links)", "self._answers"),
            "who has left is waited for": ("self._take(link, _AT if self._presides else _LAST, _NEVER)", "pass"),
            "a stranger takes a place": ("if greeted == token:", "if True:"),
        },
    ),
    Room(
        "mindcv_reparam/training/step.py",
        "tests/test_training_waits.py",
        {
            "a branch": (
                "            self.update_weights(lr, gradients, finite)\n",
                "            if finite:\n                self.update_weights(lr, gradients, None)\n",
            ),
            "no mask": ("self.update_weights(lr, gradients, finite)", "self.update_weights(lr, gradients, None)"),
            "skips are not counted": ("1 - ops.cast(finite, ms.int32)", "0 * ops.cast(finite, ms.int32)"),
            "variants share a graph": (
                "super().__call__(inputs, targets, lr, self.objective.variant)",
                "super().__call__(inputs, targets, lr, 0)",
            ),
            "another graph is compiled ahead": (
                "self.compile(inputs, targets, lr, self.objective.variant)",
                "self.compile(inputs, targets, lr, update)",
            ),
        },
    ),
    Room(
        "mindcv_reparam/training/trainer.py",
        "tests/test_training_waits.py",
        {
            "a value at every step": ("interval.told.append(told)", "interval.told.append(Tensor(told.asnumpy()))"),
            "values one by one": (
                "ops.stack(interval.told).asnumpy()",
                "np.stack([t.asnumpy() for t in interval.told])",
            ),
        },
    ),
    Room(
        "mindcv_reparam/training/trainer.py",
        "tests/test_training_transfer.py",
        {
            "the next batch after the wait of a profile": (
                "        self.transfer.queued()\n        if self.profile:\n            self.profile.after(index + 1)\n",
                "        if self.profile:\n            self.profile.after(index + 1)\n        self.transfer.queued()\n",
            ),
        },
    ),
    Room(
        "mindcv_reparam/training/transfer.py",
        "tests/test_training_transfer.py",
        {
            "a step does not wait for its copy": (
                "        self._steps.wait_event(sent.copied)  # the device waits, not the host\n",
                "",
            ),
            "memory used again once a step is queued": ("while not self._unfinished[0][1].query():", "while False:"),
            "the end of copies taken for that of a step": (
                "(self._taken, self._steps.record_event())",
                "(self._taken, self._copies.record_event())",
            ),
            "what is copied let go of": ("return _Sent(pinned, tensors,", "return _Sent((), tensors,"),
            "what a step reads let go of": ("append((self._taken,", "append((None,"),
            "copies behind the steps": ("StreamCtx(self._copies)", "StreamCtx(self._steps)"),
            "a batch sent twice": (
                "sent = following[1] if following and",
                "sent = following[1] if following and False and",
            ),
            "another batch than the loader's": ("if following and following[0] is arrays[0] else", "if following else"),
            "the host waits for a copy": ("blocking=False", "blocking=True"),
            "what has arrived not looked at": ("if not np.array_equal(", "if not np.size("),
        },
    ),
    Room(
        "mindcv_reparam/data/loader.py",
        "tests/test_data_loader.py -k shown",
        {"taken when shown": ("(future := self._ahead[0][1])", "(future := self._ahead.popleft()[1])")},
    ),
    Room(
        "mindcv_reparam/training/optimizer.py",
        "tests/test_training_waits.py",
        {
            "skips are updates for the corrections": (
                "updates if finite is None else self.updates + ops.cast(finite, ms.float32)",
                "updates",
            ),
        },
    ),
    Room(
        "mindcv_reparam/multi_tensor.py",
        "tests/test_training_waits.py",
        {
            "the mean fades": ("ops.select(finite, beta1, one)", "beta1"),
            "the variance fades": ("ops.select(finite, beta2, one)", "beta2"),
            "weights decay": ("ops.select(finite, step_size, ops.zeros_like(step_size))", "step_size"),
            "a skip moves the average": (
                "ops.select(moves, average * decay",
                "ops.select(moves == moves, average * decay",
            ),
        },
    ),
    Room(
        "mindcv_reparam/multi_tensor.py",
        "tests/test_training_step.py -k average",
        {
            "averages are not swapped back": (
                "        finally:\n            _assign(self.values, held)",
                "        finally:\n            pass",
            ),
            "what was held is not a copy": ("value.value() for value", "value for value"),
        },
    ),
    Room(
        "mindcv_reparam/cpu/kernels/multi_tensor.cc",
        "tests/test_cpu.py -k many",
        {
            "a skip moves the average": ("if (moves == 0) return 0;", ""),
            "a skip updates": ("if (s[5] == 0) return 0;", ""),
            "only the first block": ("begin += kBlock", "begin += size"),
            "one factor for all": ("factors[2 * n + k]", "factors[2 * n]"),
            "nothing changes places": ("x + blocks[i].end", "x + blocks[i].begin"),
            "no decay of the weight": (" + decoupled * weight[j]", ""),
            "no decay in the gradient": (" + coupled * weight[j]", ""),
        },
    ),
    Room(
        "mindcv_reparam/cpu/multi_tensor.py",
        "tests/test_cpu.py -k many",
        {
            "only what one launch takes": ("_sizes(len(cell.parameters))", "_sizes(len(cell.parameters))[:1]"),
            "factors of the first part": ("self.tables[i]", "self.tables[0]"),
            "averages stay in place": (
                "        finally:\n            self._exchange()",
                "        finally:\n            pass",
            ),
        },
    ),
    Room(
        "mindcv_reparam/private.py",
        "tests/test_private.py -k changes",
        {"an order of its own": ('operator.add_prim_attr("side_effect_mem", True)', "operator")},
    ),
    Room(
        "mindcv_reparam/training/ema.py",
        "tests/test_training_waits.py",
        {
            "a skip counts": ("(1.0 if moves is None else ops.cast(moves, ms.float32))", "1.0"),
        },
    ),
    Room(
        "mindcv_reparam/training/writer.py",
        "tests/test_training_writer.py",
        {
            "jobs after an error": ("if not failed:", "if True:"),
            "the error is lost": ("self._error, failed = error, True", "failed = True"),
            "nobody waits": ("self._changed.wait_for(lambda: self._left == 0)", "pass"),
            "no copy": ("np.empty_like(value)", "value"),
            "in the caller": ("        self._jobs.put(job)\n", "        self._jobs.put(job)\n        self.wait()\n"),
        },
    ),
    Room(
        "mindcv_reparam/training/resume.py",
        "tests/test_resume.py -k 'prepared or goes_on'",
        {
            "a state without its copy": ("copies = copies_of(values, spare)", "copies = dict(values)"),
        },
    ),
    Room(
        "mindcv_reparam/training/profile.py",
        "tests/test_training_profile.py",
        {
            "never ends": ("        if step == self.last:\n            self._stop()\n", "        pass\n"),
            "lost with the run": (
                "trace: TracebackType | None\n    ) -> None:\n        self._stop()",
                "trace: TracebackType | None\n    ) -> None:\n        pass",
            ),
        },
    ),
    Room(
        "mindcv_reparam/config/texts.py",
        "tests/test_config.py",
        {
            "an empty list is refused": ('text in ([], "[]")', "False"),
            "every list may be empty": ("SETTINGS[name].default == () and", "True and"),
        },
    ),
    Room(
        "mindcv_reparam/training/keeper.py",
        "tests/test_training_early_stopping.py",
        {
            "epochs without a validation count": ("get(self.metric) is not None", "get(self.metric) is not self"),
            "counting goes on after a better one": ("self.best, self.stale = score, 0", "self.best = score"),
        },
    ),
    Room(
        "mindcv_reparam/training/early_stopping.py",
        "tests/test_training_early_stopping.py",
        {
            "one too late": ("if stale < self.patience:", "if stale <= self.patience:"),
            "every rank by itself": ("int(self.ranks.sum([self.keeper.stale if self.keeper else 0])[0])", "0"),
        },
    ),
    Room(
        "mindcv_reparam/features.py",
        "tests/test_training_assembly.py -k frozen",
        {
            "names are not frozen": ("_freeze_named(net, name)", "pass"),
            "statistics of what is frozen": (
                "            cell.use_batch_statistics = False\n        elif",
                "            pass\n        elif",
            ),
        },
    ),
    Room(
        "mindcv_reparam/data/splits.py",
        "tests/test_data_folders.py -k fold",
        {
            "what does not divide goes to the first": ("            dealt += len(rows)\n", "            pass\n"),
            "the same for every seed": (
                "order = stream(seed, Purpose.SPLIT, int(label)).permutation(len(rows))\n            folds",
                "order = stream(0, Purpose.SPLIT, int(label)).permutation(len(rows))\n            folds",
            ),
            "the next one": ("folds == self.number - 1", "folds == self.number"),
        },
    ),
    Room(
        "mindcv_reparam/data/image_list.py",
        "tests/test_data_lists.py",
        {
            "parts are ignored": ("if row[2] == part]", "if row[2]]"),
            "classes of the part alone": (
                "labels = sorted({row[1] for row in rows})",
                "labels = sorted({row[1] for row in rows if part in row})",
            ),
            "twice": ("if row[0] in seen:", "if row[0] in ():"),
        },
    ),
    Room(
        "mindcv_reparam/data/sampler.py",
        "tests/test_data_balance.py",
        {
            "images by chance": ("[rng.permutation(rows) for _", "[rng.choice(rows, len(rows)) for _"),
            "the same class has one more": ("rng.permutation(np.unique(labels))", "np.unique(labels)"),
            "every epoch the same": (
                "rng = stream(seed, Purpose.ORDER, epoch)\n    labels",
                "rng = stream(seed, Purpose.ORDER, 0)\n    labels",
            ),
        },
    ),
    Room(
        "mindcv_reparam/tasks/classification/batches.py",
        "tests/test_data_balance.py",
        {
            "labels keep their weight": ("            targets *= self.class_weights\n", "            pass\n"),
            "absent classes count": ("len(there) * counts[there]", "len(counts) * counts[there]"),
        },
    ),
    Room(
        "mindcv_reparam/training/run_log.py",
        "tests/test_training_outline.py",
        {
            "what was held is lost": (
                "            self._file.handle(record)\n        self._held",
                "            pass\n        self._held",
            ),
            "on every rank": ("        if self.active:\n            logging", "        if True:\n            logging"),
            "how it failed is lost": ("isinstance(error, UserError | Interrupted)", "False"),
        },
    ),
    Room(
        "mindcv_reparam/data/source.py",
        "tests/test_training_outline.py",
        {
            "classes without images count": ("np.argmin(counts[there])", "np.argmax(counts[there])"),
            "few": ("counts < _FEW", "counts <= _FEW"),
        },
    ),
    Room(
        "mindcv_reparam/bundle/triton.py",
        "tests/test_operator_files.py -k 'triton or gathered or names or readme or promises'",
        {
            "the batch is told twice": ("spec.shape[1 if largest else 0 :]", "spec.shape[1 if not largest else 0 :]"),
            "a file of one batch is batched": ("if batched else 0\n", "if True else 0\n"),
            "the smallest listed size": ("sizes[-1] if sizes else TOGETHER", "sizes[0] if sizes else TOGETHER"),
            "the k best have labels": (
                '    return {\n        "name": name,',
                '    labelled = {"label_filename": LABELS}\n    return {\n        "name": name,',
            ),
            "words of the schema are texts": ('_ENUMS = ("data_type", "kind")', '_ENUMS = ("kind",)'),
            "nothing is gathered": ("if largest > 1:", "if largest > 8:"),
        },
    ),
    Room(
        "mindcv_reparam/export/operator_files.py",
        "tests/test_operator_files.py -k 'triton or gathered or names or readme or promises'",
        {
            "a shell splits the name": ('shlex.quote(f"{name}=.")', 'f"{name}=."'),
            "no sizes": ("if manifest.sizes else", "if not manifest.sizes else"),
            "MindSpore is asked for": ('"requirements-server.txt" if "ONNX"', '"requirements.txt" if "ONNX"'),
        },
    ),
    Room(
        "mindcv_reparam/run/timing.py",
        "tests/test_timing.py",
        {
            "first calls count": ("    program(*inputs)\n    taken: list", "    taken: list"),
            "the order stays": ("settings[turn % len(settings) :]", "settings[0:]"),
            "the quickest, whatever it takes": ("(1 + CLOSE) * shortest", "shortest"),
            "the most, whatever they wait": ("(1 - CLOSE) * most", "most"),
            "more threads": ("(one.threads, one.p50)", "(-one.threads, one.p50)"),
            "any batch": ("if one.batch == smallest", "if one.batch"),
            "calls instead of images": ("setting.batch * len(seconds)", "len(seconds)"),
            "the tail is the middle": ("(50, 95)", "(50, 50)"),
        },
    ),
    Room(
        "mindcv_reparam/serving/statistics.py",
        "tests/test_serving.py -k statistics",
        {
            "a batch's time is shared": ("self.seconds += seconds * times", "self.seconds += seconds"),
            "requests instead of images": ("self._images += images", "self._images += len(waits)"),
            "failures succeed": ("self._success if success else self._fail", "self._success"),
            "nobody came": ("self._last = round(1000 * time.time())", "self._last = 0"),
        },
    ),
)
