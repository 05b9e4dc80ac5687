"""The ComfyUI nodes: one thin file per job over the core. This package is a part of the pack, never imported alone."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .drawing.apply_identity import ApplyIdentity, ApplyIdentityAdvanced
from .drawing.encode_prompt import EncodePrompt
from .drawing.hybrid_guidance import HybridGuidance, HybridGuidanceAdvanced
from .drawing.regional_identities import RegionalIdentities
from .host import folders
from .library.blend_identities import BlendIdentities
from .library.export_lora import ExportLora
from .library.identity_files import LoadIdentity, SaveIdentity
from .library.library_routes import register
from .library.measure_likeness import MeasureLikeness
from .making.example_picture import offer_example_picture
from .making.load_miniature import LoadMiniature
from .making.load_predictor import LoadPredictor
from .making.polish_identity import PolishIdentity, PolishIdentityAdvanced
from .making.predict_identity import PredictIdentity
from .making.prepare_face import PrepareFace

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadMiniature,
    LoadPredictor,
    PrepareFace,
    PredictIdentity,
    PolishIdentity,
    PolishIdentityAdvanced,
    ApplyIdentity,
    ApplyIdentityAdvanced,
    EncodePrompt,
    SaveIdentity,
    LoadIdentity,
    ExportLora,
    BlendIdentities,
    MeasureLikeness,
    HybridGuidance,
    HybridGuidanceAdvanced,
    RegionalIdentities,
)


class HyperDreamExtension(ComfyExtension):
    """Tells ComfyUI of the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All of them, in the order of the work."""
        return list(NODES)


async def comfy_entrypoint() -> HyperDreamExtension:
    """Called once by ComfyUI."""
    folders.register_folders()
    offer_example_picture(folders.input_folder())
    register(folders.routes(), folders.identity_folders)
    return HyperDreamExtension()
