"""Networks of torchvision and timm as students: features are what goes into the last linear layer."""

import timm
import torch
import torchvision
from torch import nn

from bird.students import StudentOutput

TINY = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_nfnet", "test_mambaout")
"""A few seconds for all."""
SMALL = (
    "lcnet_050",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/densenet121",
    "torchvision/efficientnet_b0",
    "torchvision/googlenet",
    "torchvision/mnasnet0_5",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/regnet_x_400mf",
    "torchvision/regnet_y_400mf",
    "torchvision/resnet18",
    "torchvision/swin_v2_t",
    "coat_lite_tiny",
    "convnext_atto",
    "convnextv2_atto",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "edgenext_xx_small",
    "efficientformerv2_s0",
    "efficientvit_b0",
    "efficientvit_m0",
    "ese_vovnet19b_dw",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "fbnetc_100",
    "gcvit_xxtiny",
    "ghostnet_050",
    "gmlp_ti16_224",
    "hardcorenas_a",
    "inception_next_atto",
    "lambda_resnet26t",
    "legacy_seresnet18",
    "levit_128s",
    "mambaout_femto",
    "mixnet_s",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "nfnet_l0",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnety_002",
    "repvgg_a0",
    "repvit_m0_9",
    "resmlp_12_224",
    "resnest14d",
    "resnet10t",
    "rexnet_100",
    "semnasnet_050",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s1",
    "swiftformer_xs",
    "tf_efficientnet_b0",
    "tinynet_e",
    "tiny_vit_5m_224",
    "visformer_tiny",
    "xcit_nano_12_p16_224",
)


class Seen(nn.Module):
    """A network whose last linear layer is watched."""

    def __init__(self, network):
        super().__init__()
        self.network, self.held = network, []
        last = [each for each in network.modules() if isinstance(each, nn.Linear)][-1]
        last.register_forward_hook(lambda _, inputs, output: self.held.append((inputs[0], output)))
        self.width = last.in_features

    def forward(self, x):
        """Features and logits."""
        self.held.clear()
        self.network(x)
        features, logits = self.held.pop()
        return StudentOutput(features.flatten(1), logits.flatten(1))


class Half(nn.Module):
    """A student that computes under autocast."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x):
        """Its answer, in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.student(x)


def build(name, classes, side):
    """Weights as the libraries draw them, always the same."""
    torch.manual_seed(0)
    library, _, own = name.rpartition("/")
    if library:
        options = {"init_weights": True} if own == "googlenet" else {}
        return Seen(torchvision.models.get_model(own, weights=None, num_classes=classes, **options))
    try:
        return Seen(timm.create_model(own, num_classes=classes, img_size=side))
    except TypeError:  # which takes any size
        return Seen(timm.create_model(own, num_classes=classes))
