"""What each figure shows, in a sentence: its title, and its heading in the gallery of the site."""

CONCLUSIONS = {
    "fig00_main": "On the DCT limit:cgls has the error of full in about the time of "
    "truncation:k=1; one step is enough to learn",
    "fig01_solver_depth": "A random K needs hundreds of iterations, the DCT about 50; "
    "time and memory of full unrolling grow with them",
    "fig02a_vanishing": "As L grows the layers go to the kernels of K, except for a linear "
    "programme; the gradient in K does not vanish",
    "fig02b_layers": "Early layers add little to the gradient of the last iterate (a linear "
    "programme apart); averages keep them",
    "fig03c_over_the_last_iterate": "By plain descent averages learn up to 1.2 dB better than the "
    "last iterate; by Adam 0.1 dB or less",
    "fig04a_backprop_steps": "One step is ahead of full unrolling at equal epochs, and further "
    "ahead at equal seconds",
    "fig04b_why_one_step": "A few steps point far from the exact gradient, and yet no batch points "
    "uphill",
    "fig04c_recovered_share": "One step learns 0.39 dB more than full unrolling in as many epochs, "
    "and 1.7 dB more in as many seconds",
    "fig05a_quality_over_depth": "With L limit:cgls and full become exact, one step does not; "
    "a linear programme is hard for all",
    "fig05b_quality_over_steps": "More steps come nearer to the gradient, slowly at a learned K, "
    "and hardly for a linear programme",
    "fig05c_quality_over_ratio": "A large step ratio helps with a quadratic G; a linear programme "
    "is best near 10",
    "fig06a_cost": "A few steps cost little more than a forward solve; full costs four, and memory "
    "that grows with L",
    "fig06b_cost_of_other_packages": "Of other packages LU takes the most memory, and checkpoints "
    "the most time at large L",
    "fig07_frontier": "On the DCT implicit gradients are exact in the least time; on a hard K only "
    "exact gets below 3e-5",
    "fig08a_transfer": "A learned K loses nothing when it is used with more iterations than it was "
    "learned with",
    "fig09a_operators_gains": "More rows and a good start give most: 1.2 dB over the DCT with "
    "2.7 n rows, 0.45 dB with K alone",
    "fig09b_operators_alone": "Learned from the DCT, the rows of K stay close to cosines",
    "fig09e_photograph": "On a whole photograph 2.7 n learned rows are 0.3 dB ahead of total "
    "variation",
    "fig10a_dequantization": "With box and quadratic the learned K is best from 3 bits on; with "
    "the box alone an affine map is best",
    "fig10b_restored_clip": "Between the harmonics the learned K leaves less quantisation noise "
    "than the DCT",
    "fig11a_signals": "Learned rows find the jumps that total variation finds",
    "fig11b_learned_from_differences": "The rows that are used most stay finite differences",
    "fig12_bsd68": "On BSD68 24 learned filters gain 0.2 dB over the DCT in 90 s, by every "
    "strategy; CRR-NN is 0.16 dB ahead",
    "fig13_upper_level": "For one weight the adaptive method needs half to all the iterations of "
    "the best fixed accuracy; for K seven times as many",
    "fig14a_inverse": "Learned for the problem, a bank is 0.4 to 1.9 dB ahead of total variation; "
    "0 to 0.4 dB ahead of one learned for denoising",
    "fig14b_restored": "Where total variation leaves flat patches, a learned bank keeps gradual "
    "changes",
}
