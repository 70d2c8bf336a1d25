"""A plain training with timm's parts, as its train.py puts them together.

Arguments: FOLDER, of train/ and val/; and fp32 or bf16 (its --amp --amp-dtype bfloat16).
"""

import sys

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, accuracy

import atnet.timm  # noqa: F401  registers the names

EPOCHS, BATCH, SIZE, CLASSES = 3, 64, 128, 10


def main(folder: str, precision: str) -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = timm.create_model("atnet_xxxs", num_classes=CLASSES).to(memory_format=torch.channels_last)
    common = {"input_size": (3, SIZE, SIZE), "batch_size": BATCH, "num_workers": 2, "device": device,
              "interpolation": "bicubic"}  # fmt: skip
    train = create_loader(create_dataset("", folder, split="train"), is_training=True, scale=(0.35, 1.0), hflip=0.5,
                          color_jitter=0.0, **common)  # fmt: skip
    val = create_loader(create_dataset("", folder, split="val"), is_training=False, crop_pct=0.875, **common)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train))
    average = ModelEmaV3(model, decay=0.9998, use_warmup=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(EPOCHS):
        model.train()
        for images, labels in train:
            with autocast:
                loss = loss_of(model(images.to(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update(model)
            loss.item()
        for network in (model, average):
            network.eval()
            with torch.inference_mode(), autocast:
                figures = [
                    float(accuracy(network(images.to(memory_format=torch.channels_last)), labels)[0])
                    for images, labels in val
                ]
            print(f"top-1 {sum(figures) / len(figures):.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
