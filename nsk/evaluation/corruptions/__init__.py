"""The 19 corruptions of CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C on arrays."""
