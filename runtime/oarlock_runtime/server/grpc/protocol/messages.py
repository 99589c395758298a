"""The protocol's messages as classes, and its service's description, from the compiled inference.proto in this folder.

They live in a descriptor pool of their own: a process may also hold another copy of the protocol (tritonclient has
one), and in the common pool only one of them could be. messages.pyi, made by the compiler, tells their types.
"""

from importlib.resources import files

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(files(__package__).joinpath("inference.binpb").read_bytes()).file:
    _POOL.Add(_file)

DESCRIPTOR = _POOL.FindFileByName("inference.proto")
SERVICE: ServiceDescriptor = DESCRIPTOR.services_by_name["GRPCInferenceService"]
for _message in DESCRIPTOR.message_types_by_name.values():
    globals()[_message.name] = GetMessageClass(_message)
for _enum in DESCRIPTOR.enum_types_by_name.values():
    globals().update({value.name: value.number for value in _enum.values})
